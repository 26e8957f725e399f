#pragma once

#include "kernels/numerics/bf16.h"

/// Steps of epilogues over `count` values: plain loops without choices inside, which every compiler vectorises, and for
/// simd/dispatch.h to compile for the machine.
namespace nibblet {

[[gnu::always_inline]] inline void relu2(float* values, int32_t count) {
  for (int32_t i = 0; i < count; i++) {
    // Negative numbers are masked, not clamped: a NaN must stay one.
    const uint32_t square = std::bit_cast<uint32_t>(values[i] * values[i]);
    const bool negative = values[i] < 0.0f;
    values[i] = std::bit_cast<float>(square & (uint32_t(negative) - 1));
  }
}

[[gnu::always_inline]] inline void round_to_bf16(float* values, int32_t count) {
  for (int32_t i = 0; i < count; i++) values[i] = round_to_bf16(values[i]);
}

[[gnu::always_inline]] inline void store_bf16(const float* values, int32_t count, uint16_t* to) {
  for (int32_t i = 0; i < count; i++) to[i] = bf16_from_float(values[i]);
}

}  // namespace nibblet
