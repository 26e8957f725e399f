#include "kernels/synthetic/draw.h"

#include <algorithm>
#include <cstring>

#include "kernels/numerics/partition.h"
#include "kernels/synthetic/block.h"

namespace nibblet {
namespace {

/// Bytes [first, last) of a region.
template <Draw draw, bool alternate>
void fill(const DrawArgs& args, size_t first, size_t last) {
  using Part = DrawBlock<draw, alternate>;
  uint8_t* out = args.out - args.first;
  size_t at = first;
  while (at < last) {
    const size_t index = at / Part::bytes, start = index * Part::bytes;
    const uint64_t bits = splitmix64(args.seed, index);
    if (start == at && last - at >= Part::bytes) {
      Part::fill(args.table, bits, out + at);
      at += Part::bytes;
      continue;
    }
    uint8_t whole[Part::bytes];
    Part::fill(args.table, bits, whole);
    const size_t end = std::min(last, start + Part::bytes);
    std::memcpy(out + at, whole + (at - start), end - at);
    at = end;
  }
}

}  // namespace

void draw(const DrawArgs& args, int, int worker, int workers) {
  const Range part = partition(int64_t(args.bytes), worker, workers);
  const size_t first = args.first + size_t(part.first), last = args.first + size_t(part.last);
  switch (args.draw) {
    case Draw::pairs:
      return fill<Draw::pairs, false>(args, first, last);
    case Draw::bytes:
      return fill<Draw::bytes, false>(args, first, last);
    case Draw::halves:
      return args.alternate ? fill<Draw::halves, true>(args, first, last)
                            : fill<Draw::halves, false>(args, first, last);
    case Draw::words:
      return args.alternate ? fill<Draw::words, true>(args, first, last)
                            : fill<Draw::words, false>(args, first, last);
  }
}

}  // namespace nibblet
