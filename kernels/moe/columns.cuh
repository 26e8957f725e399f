#pragma once

#include "kernels/cuda/device.h"

/// Elements of Layout::columns as bf16.
namespace nibblet::columns {

/// 2¹²⁶ twice in bf16: a block scale as scale_pair() leaves it times this is 64 times the scale.
constexpr uint32_t kScaleUnit = 0x7e807e80u;
/// What a weight comes out as, W · 2⁻¹²⁰, is made up for by 2⁶⁰ twice: an activation is multiplied by it, and so is the sum.
constexpr float kHalfUnit = 0x1p60f;

/// Nibbles n and n + 4 of a word, as bf16 times 2⁻¹²⁶.
template <int n>
__device__ __forceinline__ uint32_t decode(uint32_t word) {
  const uint32_t sign = n == 3 ? word : word << (12 - 4 * n);
  const uint32_t magnitude = n < 2 ? word << (6 - 4 * n) : word >> (4 * n - 6);
  return (sign & 0x80008000u) | (magnitude & 0x01c001c0u);
}

/// The same from pairs of equal bytes, each with two codes: the lower or the upper ones. All shifts go left, which is what the
/// multiplier can do too.
template <bool upper>
__device__ __forceinline__ uint32_t decode_pair(uint32_t bytes) {
  const uint32_t sign = upper ? bytes : bytes << 4;
  return (sign & 0x80008000u) | ((upper ? bytes << 2 : bytes << 6) & 0x01c001c0u);
}

/// Two block scales, in bytes 0 (or 1) and 2 (or 3) alike, as bf16 times 2⁻¹²⁰: an e4m3 without sign, shifted into place,
/// subnormals included.
__device__ __forceinline__ uint32_t scale_pair(uint32_t bytes) { return bytes << 4 & 0x07f007f0u; }

/// From scale_pair() the scales times 2¹¹⁹: codes times them are W · 2⁻⁷, far from float32 subnormals.
__device__ __forceinline__ uint32_t weight_scale(uint32_t pair) {
  // 2¹¹³ twice.
  constexpr uint32_t kRestUnit = 0x78007800u;
  return multiply_bf16x2(multiply_bf16x2(pair, kScaleUnit), kRestUnit);
}
constexpr float kWeightUnit = 0x1p7f;

}  // namespace nibblet::columns
