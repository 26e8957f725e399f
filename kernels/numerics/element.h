#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/numerics/bf16.h"
#include "kernels/numerics/dtype.h"
#include "kernels/numerics/e4m3.h"
#include "kernels/numerics/host_device.h"

namespace nibblet {

/// Element `index` of an array of f32, bf16 or e4m3, as float32.
NIBBLET_HD inline float read_element(const void* array, DType type, size_t index) {
  switch (type) {
    case DType::bf16:
      return bf16_to_float(static_cast<const uint16_t*>(array)[index]);
    case DType::e4m3:
      return e4m3_to_float(static_cast<const uint8_t*>(array)[index]);
    default:
      return static_cast<const float*>(array)[index];
  }
}

/// Stores `value` as element `index` of an array of f32, bf16 or e4m3: nearest even, e4m3 saturating.
NIBBLET_HD inline void write_element(void* array, DType type, size_t index, float value) {
  switch (type) {
    case DType::bf16:
      static_cast<uint16_t*>(array)[index] = bf16_from_float(value);
      break;
    case DType::e4m3:
      static_cast<uint8_t*>(array)[index] = e4m3_from_float(value);
      break;
    default:
      static_cast<float*>(array)[index] = value;
  }
}

}  // namespace nibblet
