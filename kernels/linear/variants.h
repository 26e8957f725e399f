#pragma once

#include "kernels/linear/matmul.h"

/// The instantiations of panels.inc and sparse_columns.inc beside the portable ones, and BfpKernels; plan.cc chooses.
namespace nibblet {

void matmul_panels_avx2(const WeightView& weight, int32_t matrix, const float* const* x, int32_t count,
                        int32_t first, int32_t last, float* const* y);

void matmul_panels_avx512(const WeightView& weight, int32_t matrix, const float* const* x, int32_t count,
                          int32_t first, int32_t last, float* const* y);

void matmul_columns_avx2(const WeightView& weight, int32_t matrix, const float* const* x, int32_t count,
                         int32_t first, int32_t last, float* const* y);

void matmul_columns_avx512(const WeightView& weight, int32_t matrix, const float* const* x, int32_t count,
                           int32_t first, int32_t last, float* const* y);

void bfp_from_floats_avx512vnni(const float* x, int32_t count, BfpBlock* to);

void matmul_bfp_avx512vnni(const WeightView& weight, int32_t matrix, const BfpBlock* const* x, int32_t count,
                           int32_t first, int32_t last, float* const* y);

}  // namespace nibblet
