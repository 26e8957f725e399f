#pragma once

#include <cstdint>

#include "kernels/numerics/e2m1.h"
#include "kernels/numerics/e4m3.h"
#include "kernels/numerics/host_device.h"

namespace nibblet {

/// Values that share one block scale.
constexpr int kNvfp4Block = 16;

/// Quantises 16 activations to NVFP4 (W4A4; model.md 4.3 with exact division) and returns the e4m3 block scale:
///   G = 1 / input_scale
///   scale = e4m3(G · (max |x| · (1 / 6))), saturating at 448
///   code = e2m1(x · (1 / (scale · (1 / G)))), 0 where scale · (1 / G) is 0
/// every operation rounded to float32 in that order; x ≈ e2m1(code) · scale · input_scale. A NaN among the inputs
/// makes the scale a NaN. Values beyond 6 · 448 · input_scale saturate.
NIBBLET_HD constexpr uint8_t quantize_nvfp4_block(const float* x, float input_scale, uint8_t* codes) {
  float amax = 0.0f;
  for (int i = 0; i < kNvfp4Block; i++) {
    float magnitude = x[i] < 0 ? -x[i] : x[i];
    if (!(magnitude <= amax)) amax = magnitude;  // takes a NaN as well
    if (amax != amax) break;
  }
  float inverse = 1.0f / input_scale;
  uint8_t scale = e4m3_from_float(inverse * (amax * (1.0f / 6.0f)));
  float step = e4m3_to_float(scale) * (1.0f / inverse);
  float factor = step == 0.0f ? 0.0f : 1.0f / step;
  for (int i = 0; i < kNvfp4Block; i++) codes[i] = e2m1_from_float(x[i] * factor);
  return scale;
}

}  // namespace nibblet
