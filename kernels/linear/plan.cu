#include <algorithm>

#include "kernels/linear/cuda.h"
#include "kernels/linear/plan.cuh"
#include "kernels/linear/token_fragments.cuh"

namespace nibblet {
namespace {

int32_t row_tiles(int32_t out) { return round_up(out, kFragmentRows) / kFragmentRows; }

size_t prepared_bytes(const LinearArgs& args, const TokensPlan& plan) {
  // Whole blocks' worth of tokens: the columns of absent ones are read too, and what they give is dropped.
  const int32_t tiles = round_up(round_up(args.count, 8) / 8, plan.token_tiles);
  return size_t(tiles) * fragments::token_tile_bytes(args.weight.format, args.weight.in);
}

LinearTask task_of(const LinearArgs& args, const Step* step, void* workspace, void* counters,
                   const LinearPlan& plan) {
  LinearTask task{};
  task.weight = args.weight.data;
  task.tiles = row_tiles(args.weight.out);
  task.units = fragment_units(args.weight.format, args.weight.in);
  task.capacity = args.count;
  task.selected = args.rows != nullptr;
  task.step = step;
  task.prologue = {args.x, args.x_type, args.x_stride, args.norm, args.epsilon, args.weight.in};
  task.epilogue = {args.weight.row_scales, args.bias,   args.y,          args.y_stride,
                   args.weight.out,        args.y_type, args.activation, args.add};
  task.prepared = static_cast<uint8_t*>(workspace);
  if (plan.tokens.cuts > 1) {
    task.parts = reinterpret_cast<float*>(task.prepared + prepared_bytes(args, plan.tokens));
    task.counters = static_cast<uint32_t*>(counters);
  }
  return task;
}

/// Tiles of eight tokens that a block multiplies. Up to 64 tokens, so that weights are read once; beyond, each 64 tokens
/// read them again, from the second-level cache mostly.
int token_tiles_of_block(int32_t count) { return count <= 8 ? 1 : count <= 16 ? 2 : count <= 32 ? 4 : 8; }

/// What a launch costs beside its bytes is the way from the last write of the kernel before to the first sums here, so
/// that as many bytes as can be should be on the chip when the dependency wait ends; but all blocks must be resident at
/// once. Whole row tiles a block: sums across blocks would cost a round trip through memory.
///
/// Measured on an H100 with cold weights (132 multiprocessors). Up to 3 tiles a multiprocessor a block each is best or
/// close (bf16 [2688, 4096], 168 tiles: 8.7 us, 9.0 with 132 blocks; [4608, 2688], 288 tiles: 10.4, 10.8). With more, two
/// blocks a multiprocessor, so that one multiplies while the other stages x̂ (bf16 [10304, 2688]: 21.1, 21.7 with one;
/// [131072, 2688]: 232.7, 233.9; e4m3 [10304, 2688]: 11.8, 12.0). nvfp4 has so few bytes that they fit beside the next
/// kernel's when there is one (8.7 us, 9.2 with two; 11.2 with so many stages that the next kernel had no room). One block a
/// multiprocessor for all that has more than 132 tiles (but the head), with 80 registers instead of 110, was no faster
/// alone and slower in a decode step of nano-30b: 1,600 us for 1,555.
OneTokenPlan plan_one_token(Format format, int32_t out, int32_t in, const CudaTarget& target) {
  const int32_t tiles = row_tiles(out);
  const int processors = target.multiprocessors;
  const int most = format == Format::nvfp4 ? 1 : 2;
  OneTokenPlan plan = {tiles <= 3 * processors ? tiles : most * processors, kOneTokenWarps,
                       format == Format::nvfp4          ? 4
                       : format == Format::compact_bf16 ? 8
                                                        : 6};
  const int resident = (plan.blocks + processors - 1) / processors;
  const auto fits = [&] { return shared_bytes(plan, format, out, in) <= target.shared_bytes / resident; };
  while (plan.stages > 3 && !fits()) {
    plan.stages -= plan.stages == 8 || (plan.stages == 6 && format != Format::compact_bf16) ? 2 : 1;
  }
  // A small chip, or very long inputs; and every warp needs a unit.
  while (plan.warps > 1 && (plan.warps > tiles / plan.blocks * fragment_units(format, in) ||
                            shared_bytes(plan, format, out, in) > target.shared_bytes)) {
    plan.warps /= 2;
  }
  return plan;
}

/// Up to 16 tokens. Rows that are x̂ already are read where they are while that saves more (a launch) than it costs (half of
/// each sector that a lane's 16 bytes lie in, until its next piece).
void plan_few_tokens(TokensPlan& plan, const LinearArgs& args, int32_t tiles, int processors) {
  plan.row_tiles = tiles <= 3 * processors ? 1 : 2;
  plan.splits = kTokensWarps;
  plan.cuts = 1;
  // 8 tokens, nvfp4 [2688, 4096]: 8.7 us direct, 7.0 not.
  plan.direct = args.weight.format != Format::nvfp4 && can_be_direct(args);
}

/// More. All warps of a block share the inputs of one set of row tiles: blocks of more leave multiprocessors idle (64
/// tokens, bf16 [10304, 2688]: 46 us with 8 splits, 56 with 2). For nvfp4, whose weights are little beside x̂, fewer splits save
/// more where there are many groups of tokens (512 tokens and [10304, 2688]: 156 us with 2, 182 with 8).
///
/// A multiprocessor has one block at a time. What that takes, in inputs of a row tile that a warp multiplies (5.9 ns with 64
/// tokens and bf16, fitted to 64 tokens and [2688, 4096]: 17.2, 20.1 and 23.2 us with 2, 3 and 4 row tiles in 84, 56 and 42
/// blocks): what its warps take one after another, a quarter for each input of x̂, and 150 a row tile where sums meet in memory
/// (in the step, cut and not: nvfp4 [2688, 4096] 13.2 us and 15.4, bf16 18.1 and 19.8; bf16 [4608, 2688] 17.5 and 15.0).
void plan_more_tokens(TokensPlan& plan, const LinearArgs& args, int32_t tiles, int processors) {
  const Format format = args.weight.format;
  const bool wide = format == Format::bf16 || format == Format::compact_bf16;
  const int32_t tokens = plan.token_tiles * 8, groups = (args.count + tokens - 1) / tokens;
  plan.splits = kTokensWarps;
  plan.cuts = 1;
  if (plan.token_tiles == 4 && wide && tiles > 2 * processors) {
    plan.row_tiles = 2;
    // 32 tokens: 8 splits where 4 leave multiprocessors idle ([4608, 2688]: 13.7 us, 16.4 with 4), else 4 (bf16 [131072, 2688]:
    // 257, 275 with 4 row tiles and 2 splits; compact 236, 310; compact [10304, 2688]: 28, 30 with 5 row tiles and 8).
    if (tiles > 4 * processors) plan.splits = 4;
    return;
  }
  if (tiles * groups >= 32 * processors) {
    plan.row_tiles = 4;
    // 64 tokens, bf16 [131072, 2688]: 334 us, 379 with 8. Compact in the step 335, 358 with 8, though 8 are better where an
    // element in 16 is an exception (467, 428 with 8).
    plan.splits = 2;
    return;
  }
  const int32_t units = fragment_units(format, args.weight.in);
  int32_t least = 0;
  for (int cuts = 1; cuts <= kTokensMostCuts; cuts++) {
    for (int r = 2; r <= kTokensMostRowTiles; r++) {
      const int32_t blocks = (tiles + r - 1) / r * groups * cuts, shares = cuts * kTokensWarps;
      if (cuts > 1 && (blocks > processors || shares > units)) continue;
      const int32_t rounds = (blocks + processors - 1) / processors;
      const int32_t inputs = fragment_inputs(format);
      const int32_t taken = r * ((units + shares - 1) / shares) * inputs + units * inputs / (4 * cuts);
      const int32_t cost = rounds * taken + (cuts > 1 ? 150 * r : 0);
      if (least != 0 && cost >= least) continue;
      least = cost;
      plan.row_tiles = r;
      plan.cuts = cuts;
    }
  }
}

TokensPlan plan_tokens(const LinearArgs& args, const CudaTarget& target) {
  TokensPlan plan{};
  plan.token_tiles = token_tiles_of_block(args.count);
  const int32_t tiles = row_tiles(args.weight.out);
  if (plan.token_tiles <= 2) {
    plan_few_tokens(plan, args, tiles, target.multiprocessors);
  } else {
    plan_more_tokens(plan, args, tiles, target.multiprocessors);
  }
  while (plan.row_tiles > 2 && shared_bytes(plan, args.weight.format) > target.shared_bytes) plan.row_tiles--;
  return plan;
}

}  // namespace

bool can_be_direct(const LinearArgs& args) {
  return args.x_type == DType::bf16 && args.norm == nullptr && args.rows == nullptr &&
         args.weight.in % fragment_inputs(args.weight.format) == 0 && args.x_stride % 8 == 0 &&
         reinterpret_cast<uintptr_t>(args.x) % 16 == 0;
}

LinearPlan plan_linear_cuda(const LinearArgs& args, const CudaTarget& target) {
  const WeightView& weight = args.weight;
  LinearPlan plan{};
  if (weight.format == Format::f32) return plan;
  plan.one_token = args.count == 1;
  if (plan.one_token) plan.one = plan_one_token(weight.format, weight.out, weight.in, target);
  plan.tokens = plan_tokens(args, target);
  return plan;
}

CudaScratch linear_cuda_scratch(const LinearArgs& args, const LinearPlan& plan) {
  if (args.weight.format == Format::f32) {
    return {size_t(args.count) * size_t(round_up(args.weight.in, kPieceInputs)) * 2, 0};
  }
  if (plan.one_token) return {0, 0};
  CudaScratch scratch = {prepared_bytes(args, plan.tokens), 0};
  if (plan.tokens.cuts > 1) {
    const TokensGrid grid(plan.tokens, row_tiles(args.weight.out), args.count);
    const size_t blocks = size_t(grid.blocks) * size_t(grid.groups);
    const size_t sums = size_t(grid.tiles_of_block * kFragmentRows) * size_t(plan.tokens.token_tiles) * 8;
    scratch.workspace += blocks * size_t(plan.tokens.cuts) * sums * sizeof(float);
    scratch.counters = blocks * sizeof(uint32_t);
  }
  return scratch;
}

CudaScratch linear_cuda_scratch(const LinearArgs& args, const CudaTarget& target) {
  return linear_cuda_scratch(args, plan_linear_cuda(args, target));
}

cudaError_t linear_cuda(const LinearArgs& args, const Step* step, void* workspace, void* counters,
                        const LinearPlan& plan, const CudaTarget& target) {
  if (args.count <= 0) return cudaSuccess;
  const Format format = args.weight.format;
  const Layout layout = format == Format::f32 ? Layout::rows : Layout::fragments;
  if (args.weight.layout != layout || args.exact || args.quantize_input) return cudaErrorInvalidValue;
  const LinearTask task = task_of(args, step, workspace, counters, plan);
  if (plan.one_token) return linear_one_token_cuda(task, format, plan.one, target);
  if (format == Format::f32 || !plan.tokens.direct) {
    const cudaError_t error = linear_prepare_cuda(task, format, target);
    if (error != cudaSuccess) return error;
  }
  if (format == Format::f32) return linear_rows_cuda(task, target);
  return linear_tokens_cuda(task, format, plan.tokens, target);
}

cudaError_t linear_cuda(const LinearArgs& args, const Step* step, void* workspace, void* counters,
                        const CudaTarget& target) {
  return linear_cuda(args, step, workspace, counters, plan_linear_cuda(args, target), target);
}

}  // namespace nibblet
