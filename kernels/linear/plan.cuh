#pragma once

#include "kernels/cuda/launch.h"
#include "kernels/linear/task.cuh"
#include "kernels/weight.h"

/// Which kernel does a linear on CUDA, and how it is cut. The choices are made in plan.cu and nowhere else.
namespace nibblet {

/// Units that each warp of the one-token kernel keeps in flight.
constexpr int kOneTokenStages = 5;

struct OneTokenPlan {
  int blocks;
  int warps;  ///< of a block; at most the units that any block has
  size_t shared_bytes;
};

/// Row tiles that a warp of the token kernel multiplies with each tile of tokens it reads, and pairs of units it keeps in
/// flight.
constexpr int kTokensRowTiles = 2;
constexpr int kTokensStages = 4;
constexpr int kTokensWarps = 8;

struct TokensPlan {
  int token_tiles;  ///< of eight tokens, in a block: 1, 2, 4 or 8
  int splits;       ///< warps that share the inputs of a pair of row tiles: divides kTokensWarps
  dim3 grid;
  size_t shared_bytes;
};

OneTokenPlan plan_one_token(const LinearTask& task, Format format, const CudaTarget& target);
TokensPlan plan_tokens(const LinearTask& task, Format format, const CudaTarget& target);

// The kernels; each returns the first error of its launch.

/// x̂ of all rows as bf16: for f32 weights row after row, for others in tiles of eight tokens as fragments.cuh has them.
cudaError_t linear_prepare_cuda(const LinearTask& task, Format format, const CudaTarget& target);
/// For f32 weights in Layout::rows, from prepared x̂.
cudaError_t linear_rows_cuda(const LinearTask& task, const CudaTarget& target);
/// For one row at most, Layout::fragments.
cudaError_t linear_one_token_cuda(const LinearTask& task, Format format, const OneTokenPlan& plan,
                                  const CudaTarget& target);
/// For any number of rows, Layout::fragments, from prepared x̂.
cudaError_t linear_tokens_cuda(const LinearTask& task, Format format, const TokensPlan& plan,
                               const CudaTarget& target);

}  // namespace nibblet
