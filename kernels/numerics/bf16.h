#pragma once

#include <bit>
#include <cstdint>

#include "kernels/numerics/host_device.h"

namespace nibblet {

/// The float32 whose upper half is `bits`; exact.
NIBBLET_HD constexpr float bf16_to_float(uint16_t bits) { return std::bit_cast<float>(uint32_t{bits} << 16); }

/// Nearest bf16, ties to even; overflow gives infinity. A NaN stays a NaN of the same sign and upper payload, made
/// quiet (rounding its bits could carry into an infinity).
NIBBLET_HD constexpr uint16_t bf16_from_float(float value) {
  uint32_t bits = std::bit_cast<uint32_t>(value);
  uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  bool is_nan = (bits & 0x7fffffff) > 0x7f800000;
  return uint16_t(is_nan ? (bits >> 16) | 0x40 : rounded);
}

/// `value` rounded to bf16, as float32.
NIBBLET_HD constexpr float round_to_bf16(float value) { return bf16_to_float(bf16_from_float(value)); }

}  // namespace nibblet
