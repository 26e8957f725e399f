#pragma once

#include "kernels/linear/cuda_plan.h"
#include "kernels/linear/task.cuh"
#include "kernels/weight.h"

/// The kernels of linear; each function returns the first error of its launch.
namespace nibblet {

constexpr int kOneTokenWarps = 8;

/// Row tiles that a warp of the tokens kernel multiplies with each tile of tokens it reads, and pairs of units that it
/// keeps in flight: of smaller units more.
constexpr int kTokensRowTiles = 2;
constexpr int kTokensWarps = 8;
constexpr int tokens_stages(Format format) { return format == Format::compact_bf16 ? 6 : 4; }

/// x̂ of all rows as bf16: for f32 weights row after row, for others in tiles of eight tokens as fragments.cuh has them.
cudaError_t linear_prepare_cuda(const LinearTask& task, Format format, const CudaTarget& target);
/// For f32 weights in Layout::rows, from prepared x̂.
cudaError_t linear_rows_cuda(const LinearTask& task, const CudaTarget& target);
cudaError_t linear_one_token_cuda(const LinearTask& task, Format format, const OneTokenPlan& plan,
                                  const CudaTarget& target);
cudaError_t linear_tokens_cuda(const LinearTask& task, Format format, const TokensPlan& plan,
                               const CudaTarget& target);

}  // namespace nibblet
