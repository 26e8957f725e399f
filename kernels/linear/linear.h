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
/// x̂ in rows of round_up(in, 16) floats, and behind them in rows of BfpBlock where it is read as such.
inline size_t linear_scratch_bytes(int64_t count, int32_t in) {
  return size_t(count) * size_t(round_up(in, kBlockInputs) / kBlockInputs) *
         (kBlockInputs * sizeof(float) + sizeof(BfpBlock));
}
void linear(const LinearArgs& args, int phase, int worker, int workers);

}  // namespace nibblet
