#pragma once

#include "kernels/linear/matmul.h"

/// The instantiations of panels.inc and sparse_columns.inc beside the portable ones; plan.cc chooses.
namespace nibblet {

void matmul_panels_avx2(const WeightView& weight, int32_t matrix, const float* const* x, int32_t count,
                        int32_t first, int32_t last, float* const* y);

void matmul_panels_avx512(const WeightView& weight, int32_t matrix, const float* const* x, int32_t count,
                          int32_t first, int32_t last, float* const* y);

void matmul_columns_avx2(const WeightView& weight, int32_t matrix, const float* const* x, int32_t count,
                         int32_t first, int32_t last, float* const* y);

void matmul_columns_avx512(const WeightView& weight, int32_t matrix, const float* const* x, int32_t count,
                           int32_t first, int32_t last, float* const* y);

}  // namespace nibblet
