#include "kernels/synthetic/draw.h"

#include <algorithm>
#include <cstring>

#include "kernels/numerics/partition.h"

namespace nibblet {
namespace {

constexpr uint64_t splitmix64(uint64_t seed, uint64_t index) {
  uint64_t z = seed + (index + 1) * 0x9E3779B97F4A7C15u;
  z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
  z = (z ^ z >> 27) * 0x94D049BB133111EBu;
  return z ^ z >> 31;
}

/// What one random word becomes.
template <Draw draw, bool alternate>
struct Block {
  static constexpr size_t kBytes = draw == Draw::pairs                           ? 4
                                   : draw == Draw::bytes || draw == Draw::halves ? 8
                                                                                 : 16;
  static constexpr size_t bytes = alternate ? 2 * kBytes : kBytes;

  static void fill(const void* table, uint64_t bits, uint8_t* out) {
    if constexpr (draw == Draw::pairs) {
      const uint8_t* entries = static_cast<const uint8_t*>(table);
      for (int i = 0; i < 4; ++i) out[i] = entries[bits >> 16 * i & 0xffff];
    } else if constexpr (draw == Draw::bytes) {
      const uint8_t* entries = static_cast<const uint8_t*>(table);
      for (int i = 0; i < 8; ++i) out[i] = entries[bits >> 8 * i & 0xff];
    } else if constexpr (draw == Draw::halves) {
      fill_lanes<uint16_t>(table, bits, out);
    } else {
      fill_lanes<uint32_t>(table, bits, out);
    }
  }

 private:
  template <class T>
  static void store(uint8_t* out, T value) {
    std::memcpy(out, &value, sizeof value);
  }

  template <class T>
  static void fill_lanes(const void* table, uint64_t bits, uint8_t* out) {
    constexpr T kSign = T(T{1} << (8 * sizeof(T) - 1));
    for (int i = 0; i < 4; ++i) {
      const T entry = static_cast<const T*>(table)[bits >> 16 * i & 0xfff];
      if constexpr (alternate) {
        store(out + 2 * i * sizeof(T), entry);
        store(out + (2 * i + 1) * sizeof(T), T(entry ^ kSign));
      } else {
        store(out + i * sizeof(T), entry);
      }
    }
  }
};

/// Bytes [first, last) of a region.
template <Draw draw, bool alternate>
void fill(const DrawArgs& args, size_t first, size_t last) {
  using Part = Block<draw, alternate>;
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
