#pragma once

#include "kernels/linear/bfp.h"
#include "kernels/numerics/dtype.h"
#include "kernels/step.h"
#include "kernels/weight.h"

namespace nibblet {

enum class Activation : uint8_t { none, relu2 };

/// y = activation(norm(x) · Wᵀ + bias), or y += that.
///
/// x̂[t, k] = x[t, k] · rsqrt(mean over k of x[t, k]² + epsilon) · norm[k] where there is a norm (RMSNorm, computed
/// and multiplied in float32), otherwise x. In normal mode x̂ is then rounded to bf16; in exact mode it stays
/// float32. With `quantize_input` (W4A4, needs input_scale) x̂ is instead quantised to NVFP4 in blocks of 16 as
/// numerics/nvfp4.h defines it and the product is multiplied by input_scale. Sums in float32; where plan_bfp has kernels for
/// the weight and not in exact mode, the product reads x̂ in block floating point, within the bound that matmul.h states.
/// Phases: 0 prologue into `prepared`, 1 product.
struct LinearArgs {
  const void* x;  ///< [*, in], f32 or bf16
  DType x_type;
  int64_t x_stride;       ///< elements between rows of x
  const LogitsRow* rows;  ///< when set, row i of y is token rows[i].token of x
  int32_t count;          ///< rows of y
  const float* norm;      ///< [in] or null
  float epsilon;
  bool exact;
  bool quantize_input;
  WeightView weight;  ///< one matrix
  const float* bias;  ///< [out] or null
  Activation activation;
  bool add;  ///< y += ...; y must be f32
  void* y;   ///< [count, out], f32 or bf16 (rounded to nearest even)
  DType y_type;
  int64_t y_stride;
  float* prepared;  ///< scratch: linear_scratch_bytes, 64-byte aligned
};

constexpr int kLinearPhases = 2;
/// Floats between rows of x̂: a cache line more than the inputs, padded. Rows of whole KiB would meet in a few sets of the first
/// cache, which has fewer ways than a tile tokens.
constexpr int32_t linear_row_floats(int32_t in) { return round_up(in, kBlockInputs) + 16; }
/// x̂ in such rows, and behind them in rows of one BfpBlock for 16 inputs where it is read as such.
constexpr size_t linear_scratch_bytes(int64_t count, int32_t in) {
  return size_t(count) * (size_t(linear_row_floats(in)) * sizeof(float) +
                          size_t(round_up(in, kBlockInputs) / kBlockInputs) * sizeof(BfpBlock));
}
void linear(const LinearArgs& args, int phase, int worker, int workers);

}  // namespace nibblet
