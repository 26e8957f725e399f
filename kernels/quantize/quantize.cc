#include "kernels/quantize/quantize.h"

#include <cmath>
#include <cstring>

#include "kernels/numerics/bf16.h"
#include "kernels/numerics/nvfp4.h"
#include "kernels/numerics/partition.h"

namespace nibblet {
namespace {

void load_block(const QuantizeArgs& args, int64_t index, float* to) {
  if (args.w_type == DType::bf16) {
    uint16_t bits[kNvfp4Block];
    std::memcpy(bits, args.w + index * 2, sizeof bits);
    for (int i = 0; i < kNvfp4Block; i++) to[i] = bf16_to_float(bits[i]);
  } else {
    std::memcpy(to, args.w + index * 4, kNvfp4Block * sizeof(float));
  }
}

/// Largest magnitude, or NaN when either is NaN.
float maximum(float a, float b) { return a >= b || a != a ? a : b; }

float block_maximum(const float* values) {
  float result = 0.0f;
  for (int i = 0; i < kNvfp4Block; i++) result = maximum(result, std::fabs(values[i]));
  return result;
}

/// Codes of one block, and its scale as the return value.
uint8_t quantize_block(const float* values, float global, uint8_t* codes) {
  float quotient = block_maximum(values) / (kE2m1Max * global);
  if (quotient == 0.0f) quotient = 1.0f;
  if (quotient < kE4m3Min) quotient = kE4m3Min;
  if (quotient > kE4m3Max) quotient = kE4m3Max;
  uint8_t scale = e4m3_from_float(quotient);
  float step = e4m3_to_float(scale) * global;
  for (int i = 0; i < kNvfp4Block; i += 2) {
    uint8_t low = step == 0.0f ? 0 : e2m1_from_float(values[i] / step);
    uint8_t high = step == 0.0f ? 0 : e2m1_from_float(values[i + 1] / step);
    codes[i / 2] = uint8_t(low | high << 4);
  }
  return scale;
}

}  // namespace

void quantize(const QuantizeArgs& args, int phase, int worker, int workers) {
  int64_t blocks_per_row = args.columns / kNvfp4Block;
  Range range = partition(args.rows, worker, workers);
  float values[kNvfp4Block];
  if (phase == 0) {
    float amax = 0.0f;
    for (int64_t block = range.first * blocks_per_row; block < range.last * blocks_per_row; block++) {
      load_block(args, block * kNvfp4Block, values);
      amax = maximum(amax, block_maximum(values));
    }
    args.partial[worker] = amax;
    return;
  }
  float amax = 0.0f;
  for (int i = 0; i < workers; i++) amax = maximum(amax, args.partial[i]);
  float global = amax / (kE2m1Max * kE4m3Max);
  if (worker == 0) *args.global = global;
  // Not finite: the caller sees it in `global` and discards the rest, which is still written.
  bool finite = std::isfinite(global);
  constexpr uint8_t kOne = e4m3_from_float(1.0f);
  for (int64_t block = range.first * blocks_per_row; block < range.last * blocks_per_row; block++) {
    uint8_t* codes = args.codes + block * (kNvfp4Block / 2);
    if (global == 0.0f || !finite) {
      std::memset(codes, 0, kNvfp4Block / 2);
      args.block_scales[block] = kOne;
    } else {
      load_block(args, block * kNvfp4Block, values);
      args.block_scales[block] = quantize_block(values, global, codes);
    }
  }
}

}  // namespace nibblet
