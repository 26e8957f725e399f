#include <algorithm>

#include "kernels/linear/cuda.h"
#include "kernels/linear/fragments.cuh"
#include "kernels/linear/plan.cuh"

namespace nibblet {
namespace {

constexpr size_t kScratchBytes = 32 * sizeof(float);

LinearTask task_of(const LinearArgs& args, const Step* step, void* workspace) {
  LinearTask task{};
  task.weight = args.weight.data;
  task.tiles = round_up(args.weight.out, kFragmentRows) / kFragmentRows;
  task.units = fragment_units(args.weight.format, args.weight.in);
  task.capacity = args.count;
  task.selected = args.rows != nullptr;
  task.step = step;
  task.prologue = {args.x, args.x_type, args.x_stride, args.norm, args.epsilon, args.weight.in};
  task.epilogue = {args.weight.row_scales, args.bias,   args.y,          args.y_stride,
                   args.weight.out,        args.y_type, args.activation, args.add};
  task.prepared = static_cast<uint8_t*>(workspace);
  return task;
}

/// Tiles of eight tokens that a block multiplies, and groups of so many for all tokens.
int token_tiles_of_block(int32_t count) { return count <= 8 ? 1 : count <= 16 ? 2 : count <= 32 ? 4 : 8; }
int token_groups(int32_t count) {
  const int tokens = token_tiles_of_block(count) * 8;
  return (count + tokens - 1) / tokens;
}

size_t prepared_bytes(const LinearArgs& args) {
  const Format format = args.weight.format;
  if (format == Format::f32) return size_t(args.count) * size_t(round_up(args.weight.in, kPieceInputs)) * 2;
  if (args.count <= 1) return 0;
  // Whole groups: blocks read the columns of absent tokens too, and drop what they give.
  return size_t(token_groups(args.count) * token_tiles_of_block(args.count)) *
         fragments::token_tile_bytes(format, args.weight.in);
}

size_t one_token_shared_bytes(const LinearTask& task, Format format, int blocks, int warps) {
  const int32_t tiles = (task.tiles + blocks - 1) / blocks;
  return size_t(warps) * kOneTokenStages * fragment_unit_bytes(format) +
         size_t(task.units) * size_t(fragment_inputs(format)) * 2 +
         size_t(tiles + warps) * kFragmentRows * sizeof(float) + kScratchBytes;
}

}  // namespace

/// What a launch costs beside its bytes is the way from the last write of the kernel before to the first sums here, so
/// that as many bytes as can be are on the chip when the dependency wait ends, for this kernel and for the next. Two
/// blocks of 8 warps on a multiprocessor, at 46 KB of weights in flight each, leave room for one more kernel's. Whole
/// row tiles a block: sums across blocks would cost a round trip through memory, more than the imbalance of at most one
/// tile does (nvfp4 in_proj 644 tiles on 132 multiprocessors: 5 tiles against 4.9; qkv 288: 3 against 2.2, of which the
/// last arrives with the bandwidth of all). Where there are fewer tiles than two blocks' worth each block has one tile
/// (out_proj, 168): its 32 units are in flight before the wait, all but a few.
OneTokenPlan plan_one_token(const LinearTask& task, Format format, const CudaTarget& target) {
  OneTokenPlan plan{};
  plan.warps = 8;
  plan.blocks = std::min(task.tiles, 2 * target.multiprocessors);
  plan.shared_bytes = one_token_shared_bytes(task, format, plan.blocks, plan.warps);
  // Every warp needs a unit; and very long inputs or a small chip may leave less room.
  const int32_t units = task.tiles / plan.blocks * task.units;
  while (plan.warps > 1 && (plan.warps > units || plan.shared_bytes > target.shared_bytes)) {
    plan.warps /= 2;
    plan.shared_bytes = one_token_shared_bytes(task, format, plan.blocks, plan.warps);
  }
  return plan;
}

/// Up to 64 tokens a block, so that weights are read once; beyond, each 64 tokens read them again, from the second-level
/// cache mostly. x̂ comes from there too, once a block: with many tokens a block takes more rows and fewer warps share
/// the inputs, or that traffic would outgrow the weights' (64 tokens of 2688 inputs are 344 KB).
TokensPlan plan_tokens(const LinearTask& task, Format format, const CudaTarget& target) {
  TokensPlan plan{};
  plan.token_tiles = token_tiles_of_block(task.capacity);
  const int32_t pairs = (task.tiles + kTokensRowTiles - 1) / kTokensRowTiles;
  // Few rows: more warps share the inputs, so that blocks suffice for all multiprocessors.
  const auto blocks = [&](int splits) { return (pairs * splits + kTokensWarps - 1) / kTokensWarps; };
  plan.splits = plan.token_tiles >= 8 ? 2 : plan.token_tiles >= 4 ? 4 : 8;
  while (plan.splits < kTokensWarps && blocks(plan.splits) < target.multiprocessors) plan.splits *= 2;
  plan.grid = dim3(unsigned(blocks(plan.splits)), unsigned(token_groups(task.capacity)));
  const size_t ring = size_t(kTokensWarps) * kTokensStages * kTokensRowTiles * fragment_unit_bytes(format);
  const size_t sums = size_t(kTokensWarps) * kTokensRowTiles * size_t(plan.token_tiles) * 640;
  plan.shared_bytes = std::max(ring, sums);
  return plan;
}

CudaScratch linear_cuda_scratch(const LinearArgs& args, const CudaTarget&) {
  return {prepared_bytes(args), 0};
}

cudaError_t linear_cuda(const LinearArgs& args, const Step* step, void* workspace, void*,
                        const CudaTarget& target) {
  if (args.count <= 0) return cudaSuccess;
  const Format format = args.weight.format;
  const Layout layout = format == Format::f32 ? Layout::rows : Layout::fragments;
  if (args.weight.layout != layout || args.exact || args.quantize_input) return cudaErrorInvalidValue;
  const LinearTask task = task_of(args, step, workspace);
  if (format != Format::f32 && args.count == 1) {
    return linear_one_token_cuda(task, format, plan_one_token(task, format, target), target);
  }
  const cudaError_t error = linear_prepare_cuda(task, format, target);
  if (error != cudaSuccess) return error;
  if (format == Format::f32) return linear_rows_cuda(task, target);
  return linear_tokens_cuda(task, format, plan_tokens(task, format, target), target);
}

}  // namespace nibblet
