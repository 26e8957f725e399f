#pragma once

#include <cstdint>

#include "kernels/weight.h"

namespace nibblet {

/// Sixteen inputs in block floating point, for integer dot products with nvfp4 panels: input k is code(k) · scale.
///   scale    = 2^max(E - 13, -126), where the largest magnitude lies in [2^E, 2^(E + 1)); 2^-126 when all are zero
///   code(k)  = x(k) / scale, rounded to the nearest integer, ties to even: at most 2^14 in magnitude
/// So an input is off by at most scale / 2, and a bf16 number within six binades of the block's largest is exact; so is every
/// code · scale of W4A4. A NaN or an infinity makes `scale` a NaN, and with it all sums that the block takes part in.
struct BfpBlock {
  /// Byte i belongs to input kBfpOrder[i]. code = 256 · high + low: two bytes, each an operand of a dot product of bytes.
  int8_t high[kBlockInputs];
  int8_t low[kBlockInputs];
  /// -kBfpWeightOffset · (sum of the codes). Those dot products want one side unsigned: weights have that much added.
  int32_t correction;
  float scale;
};

/// Makes twice an e2m1 value, -12 to 12, unsigned.
constexpr int32_t kBfpWeightOffset = 12;

/// The inputs of a block in the order in which the bytes of an nvfp4 panel hold them: low nibbles of the first vector's words,
/// high nibbles, then the second vector's (weight.h).
constexpr int kBfpOrder[kBlockInputs] = {0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15};

/// The value that a product sees.
constexpr float bfp_input(const BfpBlock& block, int i) {
  return float(256 * block.high[i] + block.low[i]) * block.scale;
}

}  // namespace nibblet
