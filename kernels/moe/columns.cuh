#pragma once

#include "kernels/cuda/device.h"

/// Elements of Layout::columns as bf16.
namespace nibblet::columns {

/// 2¹²⁶ twice in bf16: a block scale as scale_pair() leaves it times this is 64 times the scale.
constexpr uint32_t kScaleUnit = 0x7e807e80u;
/// What a weight comes out as, W · 2⁻¹²⁰, is made up for by 2⁶⁰ twice: an activation is multiplied by it, and so is the sum.
constexpr float kHalfUnit = 0x1p60f;
/// The same twice in bf16.
constexpr uint32_t kHalfUnits = 0x5d805d80u;

/// Nibbles n and n + 4 of a word, as bf16 times 2⁻¹²⁶.
template <int n>
__device__ __forceinline__ uint32_t decode(uint32_t word) {
  const uint32_t sign = n == 3 ? word : word << (12 - 4 * n);
  const uint32_t magnitude = n < 2 ? word << (6 - 4 * n) : word >> (4 * n - 6);
  return (sign & 0x80008000u) | (magnitude & 0x01c001c0u);
}

/// Two block scales, in bytes 0 (or 1) and 2 (or 3) alike, as bf16 times 2⁻¹²⁰: an e4m3 without sign, shifted into place,
/// subnormals included.
__device__ __forceinline__ uint32_t scale_pair(uint32_t bytes) { return bytes << 4 & 0x07f007f0u; }

}  // namespace nibblet::columns
