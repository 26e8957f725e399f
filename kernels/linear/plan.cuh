#pragma once

#include "kernels/linear/cuda_plan.h"
#include "kernels/linear/task.cuh"
#include "kernels/pack/layout.h"

/// The kernels of linear; each function returns the first error of its launch.
namespace nibblet {

constexpr int kOneTokenWarps = 8;

constexpr int kTokensWarps = 8;
constexpr int kTokensMostRowTiles = 5;
constexpr int kTokensMostCuts = 4;
/// Units of all row tiles of a warp that the tokens kernel keeps in flight.
constexpr int tokens_stages(Format format, int row_tiles) {
  if (format == Format::nvfp4 && row_tiles <= 2) return row_tiles == 1 ? 4 : 3;
  if (row_tiles == 2) return format == Format::compact_bf16 ? 6 : 4;
  const int stages = (18 << 10) / (row_tiles * int(fragment_unit_bytes(format)));
  return stages < 6 ? stages : 6;
}

/// The blocks of the tokens kernel, each of them `cuts` times.
struct TokensGrid {
  int32_t tiles_of_block, blocks, groups;  ///< groups: of tokens

  TokensGrid(const TokensPlan& plan, int32_t tiles, int32_t count) {
    const int32_t tokens = plan.token_tiles * 8;
    tiles_of_block = plan.row_tiles * kTokensWarps / plan.splits;
    blocks = (tiles + tiles_of_block - 1) / tiles_of_block;
    groups = (count + tokens - 1) / tokens;
  }
};

/// x̂ of all rows as bf16: for f32 weights row after row, for others in tiles of eight tokens as token_fragments.cuh has them.
cudaError_t linear_prepare_cuda(const LinearTask& task, Format format, const CudaTarget& target);
/// For f32 weights in Layout::rows, from prepared x̂.
cudaError_t linear_rows_cuda(const LinearTask& task, const CudaTarget& target);
cudaError_t linear_one_token_cuda(const LinearTask& task, Format format, const OneTokenPlan& plan,
                                  const CudaTarget& target);
cudaError_t linear_tokens_cuda(const LinearTask& task, Format format, const TokensPlan& plan,
                               const CudaTarget& target);

}  // namespace nibblet
