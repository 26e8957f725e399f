#pragma once

#include <bit>
#include <cstdint>

#include "kernels/numerics/host_device.h"

namespace nibblet {

/// Largest finite e4m3fn value.
constexpr float kE4m3Max = 448.0f;
/// Smallest positive e4m3fn value.
constexpr float kE4m3Min = 0x1p-9f;

/// 0x7f and 0xff are the NaNs of e4m3fn; there is no infinity.
NIBBLET_HD constexpr bool e4m3_is_nan(uint8_t bits) { return (bits & 0x7f) == 0x7f; }

/// e4m3fn (bias 7, subnormals in steps of 2⁻⁹) to float32; exact.
NIBBLET_HD constexpr float e4m3_to_float(uint8_t bits) {
  uint32_t sign = uint32_t{bits & 0x80u} << 24;
  uint32_t magnitude = bits & 0x7fu;
  if (magnitude == 0x7f) return std::bit_cast<float>(sign | 0x7fc00000u);
  if (magnitude >= 8) return std::bit_cast<float>(sign | ((magnitude << 20) + (120u << 23)));
  float subnormal = float(magnitude) * 0x1p-9f;
  return sign ? -subnormal : subnormal;
}

/// Nearest e4m3fn, ties to even, saturating at ±448 (infinities too), the sign of zero kept; the same bits as
/// `cvt.rn.satfinite.e4m3x2.f32` except that a NaN keeps its sign (0x7f or 0xff). torch's cast differs: it turns
/// overflow into NaN.
NIBBLET_HD constexpr uint8_t e4m3_from_float(float value) {
  uint32_t bits = std::bit_cast<uint32_t>(value);
  uint32_t sign = bits >> 24 & 0x80;
  uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return uint8_t(sign | 0x7f);
  if (magnitude >= 0x43e00000) return uint8_t(sign | 0x7e);  // 448
  if (magnitude < 0x3c800000) {                              // 2⁻⁶: below the normal numbers
    // Adding 2¹⁴ leaves 2⁻⁹ as the last place of the sum, so the addition itself rounds to nearest even.
    float sum = std::bit_cast<float>(magnitude) + 0x1p14f;
    return uint8_t(sign | (std::bit_cast<uint32_t>(sum) & 0xf));
  }
  uint32_t rounded = magnitude + 0x7ffff + (magnitude >> 20 & 1);
  return uint8_t(sign | ((rounded >> 20) - (120u << 3)));
}

}  // namespace nibblet
