#pragma once

#include <cstddef>
#include <cstdint>

namespace nibblet {

/// What is drawn, and how many entries the table of a draw has.
enum class Draw : uint8_t {
  pairs,  ///< 65536 entries of one byte, which holds two 4-bit codes: the table of their product distribution
  bytes,  ///< 256 entries of one byte
  halves,  ///< 4096 entries of two bytes
  words,   ///< 4096 entries of four bytes
};

constexpr size_t draw_entries(Draw draw) {
  return draw == Draw::pairs ? 65536 : draw == Draw::bytes ? 256 : 4096;
}
constexpr size_t draw_entry_bytes(Draw draw) {
  return draw == Draw::words ? 4 : draw == Draw::halves ? 2 : 1;
}

/// Random tensors without memory: element e of a region is the entry of a table at an index that is a pure function of the
/// region's seed and e. A table of quantiles gives any distribution. Whatever part of a region is asked for, by
/// however many workers, the bytes are the same.
///
/// Word w of the seed's random bits is output w of SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number
/// generators, OOPSLA 2014) started at the seed. An element takes the next 16 of its bits, low ones first (bytes 8), of
/// which a table of 4096 uses the low 12.
/// With `alternate`, elements come in pairs of opposite sign: 2i is entry i of the stream, 2i + 1 the same with its sign bit
/// flipped, so that every even-sized row sums to zero. For halves and words.
/// Phases: 1.
struct DrawArgs {
  Draw draw;
  bool alternate;
  uint64_t seed;
  const void* table;
  size_t first;  ///< bytes from the start of the region
  size_t bytes;
  uint8_t* out;
};

constexpr int kDrawPhases = 1;
void draw(const DrawArgs& args, int phase, int worker, int workers);

}  // namespace nibblet
