#pragma once

#include "kernels/cuda/launch.h"
#include "kernels/linear/linear.h"

/// Which kernels do a linear on CUDA, and how they are cut. The choices are made in plan.cu and nowhere else.
namespace nibblet {

/// For one row at most, Layout::fragments.
struct OneTokenPlan {
  int blocks;
  int warps;   ///< of a block: at most 8, and at most the units that any block has
  int stages;  ///< pairs of units that each warp keeps in flight: 3, 4, 6 or, of compact_bf16, 5 or 8
};
size_t shared_bytes(const OneTokenPlan& plan, Format format, int32_t out, int32_t in);

/// For any number of rows, Layout::fragments.
struct TokensPlan {
  bool direct;      ///< x is x̂ already (can_be_direct), otherwise a kernel of its own prepares x̂
  int token_tiles;  ///< of eight tokens, in a block: 1, 2, 4 or 8
  int row_tiles;    ///< that a warp multiplies at once: 1 or 2 with up to two token tiles, otherwise 2 to 5
  int splits;       ///< warps that share the inputs of such row tiles: 1, 2, 4 or 8
  int cuts;         ///< blocks that share the inputs of their row tiles: 1 to 4
};
size_t shared_bytes(const TokensPlan& plan, Format format);
/// Consecutive bf16 rows without a norm, of whole units, and on 16-byte boundaries.
bool can_be_direct(const LinearArgs& args);

/// One of them, or neither for f32 weights.
struct LinearPlan {
  bool one_token;
  OneTokenPlan one;
  TokensPlan tokens;
};
LinearPlan plan_linear_cuda(const LinearArgs& args, const CudaTarget& target);

/// linear_cuda by a plan that may differ from plan_linear_cuda's, for measurements.
/// @param workspace, counters  linear_cuda_scratch(args, plan)
cudaError_t linear_cuda(const LinearArgs& args, const Step* step, void* workspace, void* counters,
                        const LinearPlan& plan, const CudaTarget& target);
CudaScratch linear_cuda_scratch(const LinearArgs& args, const LinearPlan& plan);

}  // namespace nibblet
