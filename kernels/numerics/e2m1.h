#pragma once

#include <bit>
#include <cstdint>

#include "kernels/numerics/host_device.h"

namespace nibblet {

/// Largest e2m1 value; there are no infinities or NaNs.
constexpr float kE2m1Max = 6.0f;

/// Codes 0..7 are 0, 0.5, 1, 1.5, 2, 3, 4, 6; bit 3 is the sign (8 is minus zero). Higher bits are ignored.
NIBBLET_HD constexpr float e2m1_to_float(uint8_t code) {
  uint32_t sign = uint32_t{code & 8u} << 28;
  uint32_t magnitude = code & 7u;
  uint32_t bits = magnitude >= 2 ? (magnitude << 22) + (126u << 23) : magnitude * 0x3f000000u;
  return std::bit_cast<float>(sign | bits);
}

/// Nearest e2m1 code, ties to even, saturating at ±6. A negative value that rounds to zero gives 8; minus zero gives
/// 0, as ModelOpt's `x < 0` does. NaN gives 7 (as the hardware's satfinite conversion): callers reject it before.
NIBBLET_HD constexpr uint8_t e2m1_from_float(float value) {
  uint8_t sign = value < 0 ? 8 : 0;
  float magnitude = value < 0 ? -value : value;
  if (!(magnitude <= 5.0f)) return sign | 7;
  // Ties lie at the midpoints; each comparison is strict or not so that a tie goes to the even code.
  return sign | uint8_t((magnitude > 0.25f) + (magnitude >= 0.75f) + (magnitude > 1.25f) +
                        (magnitude >= 1.75f) + (magnitude > 2.5f) + (magnitude >= 3.5f));
}

}  // namespace nibblet
