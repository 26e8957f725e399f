#pragma once

#include <bit>
#include <cstdint>

#include "kernels/numerics/host_device.h"

namespace nibblet {

/// IEEE binary16 to float32; exact, subnormals, infinities and NaN payloads included.
NIBBLET_HD constexpr float f16_to_float(uint16_t bits) {
  uint32_t sign = uint32_t{bits & 0x8000u} << 16;
  uint32_t magnitude = bits & 0x7fffu;
  if (magnitude >= 0x7c00) return std::bit_cast<float>(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
  if (magnitude >= 0x400) return std::bit_cast<float>(sign | ((magnitude << 13) + (112u << 23)));
  float subnormal = float(magnitude) * 0x1p-24f;
  return sign ? -subnormal : subnormal;
}

}  // namespace nibblet
