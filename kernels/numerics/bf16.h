#pragma once

#include <bit>
#include <cstdint>
#include <type_traits>

#include "kernels/numerics/host_device.h"

namespace nibblet {

/// The float32 whose upper half is `bits`; exact.
NIBBLET_HD constexpr float bf16_to_float(uint16_t bits) { return std::bit_cast<float>(uint32_t{bits} << 16); }

/// Nearest bf16, ties to even; overflow gives infinity. A NaN stays a NaN: of the same sign and upper payload, made quiet
/// (rounding its bits could carry into an infinity), but on a GPU always 0x7fff.
NIBBLET_HD constexpr uint16_t bf16_from_float(float value) {
#ifdef __CUDA_ARCH__
  if (!std::is_constant_evaluated()) {
    uint16_t nearest;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(nearest) : "f"(value));
    return nearest;
  }
#endif
  uint32_t bits = std::bit_cast<uint32_t>(value);
  uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  bool is_nan = (bits & 0x7fffffff) > 0x7f800000;
  return uint16_t(is_nan ? (bits >> 16) | 0x40 : rounded);
}

/// Two of them, `low` in the lower half.
NIBBLET_HD inline uint32_t bf16_pair_from_floats(float low, float high) {
#ifdef __CUDA_ARCH__
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
#else
  return bf16_from_float(low) | uint32_t{bf16_from_float(high)} << 16;
#endif
}

/// `value` rounded to bf16, as float32.
NIBBLET_HD constexpr float round_to_bf16(float value) { return bf16_to_float(bf16_from_float(value)); }

}  // namespace nibblet
