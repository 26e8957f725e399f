#pragma once

#include "kernels/linear/bfp.h"
#include "kernels/weight.h"

namespace nibblet {

/// The inner product that linear and moe share: for n in [first, last)
///   y[m][n] = row_scales[n] · sum over k of x[m][k] · W[n, k]
/// accumulated in float32 in an order that depends on `in` and, for compact_bf16, on the weight, never on m, `first` or `last`:
/// batch-invariant.
/// @param x      `count` pointers to float32 rows of `in` values, zero-padded to a multiple of 16; for compact_bf16 each
///               times kCompactInputScale (pack/compact_panels.h), which y is without
/// @param y      `count` pointers to float32 rows, indexed by n - first
/// The panel and column variants need `first` to be a multiple of 16 and write up to round_up(last, 16) - first values of y.
using Matmul = void (*)(const WeightView& weight, int32_t matrix, const float* const* x, int32_t count,
                        int32_t first, int32_t last, float* const* y);

/// The specification, for Layout::rows.
void matmul_reference(const WeightView& weight, int32_t matrix, const float* const* x, int32_t count,
                      int32_t first, int32_t last, float* const* y);

/// Portable, blocked, for Layout::panels.
void matmul_panels(const WeightView& weight, int32_t matrix, const float* const* x, int32_t count,
                   int32_t first, int32_t last, float* const* y);

/// Portable, for Layout::columns: reads the columns of inputs that are not zero. Gives the same bits as matmul_panels
/// of the same variant with the same weights in panels, provided those are nvfp4 and finite.
/// A range of many rows is read faster than many ranges: up to 64 tokens and a worker's share of the rows at once.
void matmul_columns(const WeightView& weight, int32_t matrix, const float* const* x, int32_t count,
                    int32_t first, int32_t last, float* const* y);

/// The variant for a weight's layout on this machine.
Matmul plan_matmul(const WeightView& weight);

/// Whether one token's product with panels of compact_bf16 takes less time than with bf16 on this machine.
bool prefers_compact_panels();

/// The inner product by integer dot products: x as `count` rows of BfpBlock, one for each 16 inputs. Every product and the sum of
/// a block are exact; what remains is the rounding of one addition a block, in the order of the blocks, and what conversion
/// took from x: in all at most row_scales[n] · sum over blocks of scale / 2 · sum of the block's |W[n, k]|. Batch-invariant.
using BfpMatmul = void (*)(const WeightView& weight, int32_t matrix, const BfpBlock* const* x, int32_t count,
                           int32_t first, int32_t last, float* const* y);

struct BfpKernels {
  /// `count` blocks of 16 floats.
  void (*from_floats)(const float* x, int32_t count, BfpBlock* to);
  BfpMatmul matmul;
};

/// Null where a weight is not multiplied that way on this machine, and plan_matmul is to be asked.
const BfpKernels* plan_bfp(const WeightView& weight);

}  // namespace nibblet
