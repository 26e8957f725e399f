#pragma once

#include "kernels/numerics/dtype.h"

namespace nibblet {

/// Quantises a weight [rows, columns] to NVFP4 as ModelOpt stores it:
///   global = amax(|W|) / (6 · 448)
///   block_scale = e4m3(clamp(blockamax / (6 · global), 2⁻⁹, 448)), 1 where blockamax is 0
///   code = e2m1(W / (block_scale · global)), nearest even, saturating; a negative value that rounds to 0 is 0x8
/// Divisions are float32, in that order of operations. Source: ModelOpt nvfp4_tensor.py, model.md 3.5.
/// Phases: 0 absolute maximum, 1 codes and scales. An all-zero matrix gets global = 0 and codes 0.
struct QuantizeArgs {
  const uint8_t* w;  ///< [rows, columns], f32 or bf16 (may be unaligned); columns % 16 == 0
  DType w_type;
  int32_t rows;
  int32_t columns;
  uint8_t* codes;         ///< [rows, columns / 2], low nibble = even column
  uint8_t* block_scales;  ///< [rows, columns / 16], e4m3
  float* global;          ///< [1]
  float* partial;         ///< scratch: one float per worker; NaN in W makes it NaN
};

constexpr int kQuantizePhases = 2;
void quantize(const QuantizeArgs& args, int phase, int worker, int workers);

}  // namespace nibblet
