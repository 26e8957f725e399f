#include <algorithm>

#include "kernels/cuda/warp.h"
#include "kernels/linear/token_fragments.cuh"
#include "kernels/moe/combine.cuh"
#include "kernels/moe/stretch.cuh"

namespace nibblet {
namespace {

using namespace fragments;
using namespace moe_stretch;

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
/// Blocks of an SM.
constexpr int kBlocks = 3;
/// Units of weights that a warp has under way. More of them, or fewer blocks with more, are no faster.
constexpr int kDepth = 3;
/// Rows of an item of weights in rows.
constexpr int32_t kItemRows = kWarps * kFragmentRows;

/// Brings the inputs of a tile of tokens into the order in which lanes read them. What belongs to tokens that are not there
/// stays what it is: no column of a product depends on another.
template <Format format, bool down>
__device__ void stage_tokens(const MoeTileProduct<down>& product, uint8_t* to) {
  const int32_t in = product.weight().in, padded = round_up(in, kBlockInputs);
  const uint32_t pieces = uint32_t(fragment_units(format, in) * fragment_inputs(format) / 8);
#pragma unroll 1
  for (uint32_t i = threadIdx.x; i < uint32_t(product.tile.count) * pieces; i += kThreads) {
    const int32_t token = int32_t(i / pieces), piece = int32_t(i % pieces);
    uint8_t* const at = to + token_piece_offset(format, token, piece * 8);
    if (piece * 8 < padded) {
      copy_async(at, product.input(token) + piece * 8);
    } else {
      *reinterpret_cast<uint4*>(at) = make_uint4(0, 0, 0, 0);
    }
  }
  copy_async_commit();
}

/// Adds a unit times its inputs, which lie in shared memory.
template <Format format>
__device__ __forceinline__ void add_unit(const Unit<format>& unit, const uint8_t* inputs, int lane,
                                         float (&c)[2][4]) {
  TokenTile<format> tile;
  tile.read(inputs, lane);
  for_each_mma(unit, [&](int i, const uint32_t (&a)[4]) {
    mma_bf16(c[i % 2], a[0], a[1], a[2], a[3], tile.b0(i), tile.b1(i));
  });
}

/// A lane's part of a unit in global memory.
template <Format format>
__device__ __forceinline__ Unit<format> load_unit(const uint8_t* unit, int lane, uint64_t policy) {
  Unit<format> result;
  result.low = load_stream(unit + lane * 16, policy);
  if constexpr (format != Format::e4m3) result.high = load_stream(unit + 512 + lane * 16, policy);
  if constexpr (format == Format::nvfp4) {
    result.scales = __ldg(reinterpret_cast<const uint32_t*>(unit + 1024) + lane);
  }
  return result;
}

/// `up` or `down` of many tokens. A warp sums whole row tiles by itself, kDepth units at a time, each of which makes room for
/// a later one: warps meet only where the tokens change.
template <Format format, bool down>
__global__ void __launch_bounds__(kThreads, kBlocks)
    moe_multiply(const MoePlan plan, const uint32_t sets, const int32_t most_in) {
  constexpr int32_t kUnit = int32_t(fragment_unit_bytes(format));
  constexpr int32_t kInputBytes = fragment_inputs(format) * 16;
  grid_dependency_launch();
  uint8_t* const tokens = dynamic_shared<uint8_t>();
  const int32_t warp = int32_t(threadIdx.x) / 32, lane = int32_t(threadIdx.x) % 32;
  const uint64_t policy = evict_first_policy();
  grid_dependency_wait();
  const MoeTiles tiles(plan, sets, tokens + token_tile_bytes(format, most_in));
  if (!down && (sets & kMoeRouted) && blockIdx.x == 0) tiles.lists.publish(plan, tiles.tokens);
  const Stretch<format, down> stretch(tiles);
  bool tokens_in_use = false;

#pragma unroll 1
  for (int32_t number = stretch.first; number < stretch.last;) {
    const Run<format, down> run(stretch, number);
    number += run.rows;
    const MoeTileProduct<down> product = {plan, tiles.lists.entries, run.tile};
    const int32_t units = run.units;
    const int32_t begin = run.rows * warp / kWarps, rows = run.rows * (warp + 1) / kWarps - begin;
    const uint8_t* weights = product.data() + size_t(run.row + begin) * size_t(units * kUnit);
    Unit<format> ahead[kDepth] = {};
#pragma unroll
    for (int i = 0; i < kDepth; ++i) {
      if (i < rows * units) ahead[i] = load_unit<format>(weights + i * kUnit, lane, policy);
    }
    auto upper = product.row((run.row + begin) * kFragmentRows + lane / 4);
    auto lower = product.row((run.row + begin) * kFragmentRows + lane / 4 + 8);
    if (tokens_in_use) __syncthreads();
    tokens_in_use = true;
    stage_tokens<format, down>(product, tokens);
    copy_async_wait<0>();
    __syncthreads();
#pragma unroll 1
    for (int32_t done = begin; done < begin + rows; ++done) {
      const int32_t row = (run.row + done) * kFragmentRows + lane / 4;
      const bool more = done + 1 < begin + rows;
      const int32_t last = more ? units + kDepth : units;
      const uint8_t* inputs = tokens;
      float c[2][4] = {};
#pragma unroll 1
      for (int32_t first = 0; first < units; first += kDepth) {
#pragma unroll
        for (int slot = 0; slot < kDepth; ++slot) {
          const int32_t unit = first + slot;
          if (unit >= units) break;
          add_unit<format>(ahead[slot], inputs + slot * kInputBytes, lane, c);
          // The slot's next use is in this row tile or at the start of the next one.
          const int32_t next = unit + kDepth < units ? unit + kDepth : units + slot;
          if (next < last) ahead[slot] = load_unit<format>(weights + next * kUnit, lane, policy);
        }
        inputs += kDepth * kInputBytes;
      }
      weights += units * kUnit;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int32_t token = lane % 4 * 2 + i % 2;
        if (token >= run.tile.count) continue;
        const float sum = (c[0][i] + c[1][i]) * kTokensScale<format>;
        product.store(token, row + i / 2 * 8, sum, i < 2 ? upper : lower);
      }
      if (more) {
        upper = product.row(row + kFragmentRows);
        lower = product.row(row + kFragmentRows + 8);
      }
    }
  }
}

/// float32 weights in rows: a row at a time, for checkpoints too small to be worth more.
template <bool down>
__device__ void multiply_rows(const MoeTileProduct<down>& product, int32_t piece) {
  const int32_t warp = int32_t(threadIdx.x) / 32, lane = int32_t(threadIdx.x) % 32;
  const WeightView& view = product.weight();
  const int32_t first = (piece * kWarps + warp) * kFragmentRows;
  for (int32_t row = first; row < first + kFragmentRows && first < view.out; ++row) {
    const float* weights = reinterpret_cast<const float*>(product.data()) + size_t(row) * size_t(view.in);
    for (int32_t i = 0; i < product.tile.count; ++i) {
      const uint16_t* x = product.input(i);
      float sum = 0;
      for (int32_t k = lane; k < view.in && row < view.out; k += 32) {
        sum = fmaf(bf16_to_float(__ldcg(x + k)), weights[k], sum);
      }
      sum = warp_sum(sum);
      if (lane == 0) product.store(i, row, sum, product.row(row));
    }
  }
}

/// Likewise, as items of a tile of tokens and kItemRows rows of its expert.
template <bool down>
__global__ void __launch_bounds__(kThreads, 2) moe_multiply_rows(const MoePlan plan, const uint32_t sets) {
  grid_dependency_launch();
  grid_dependency_wait();
  const MoeArgs& args = plan.args;
  const WeightView& routed = down ? args.down : args.up;
  const WeightView& shared = down ? args.shared_down : args.shared_up;
  const int32_t pieces = (max(routed.out, shared.out) + kItemRows - 1) / kItemRows;
  const MoeTiles tiles(plan, sets, dynamic_shared<uint8_t>());
  if (!down && (sets & kMoeRouted) && blockIdx.x == 0) tiles.lists.publish(plan, tiles.tokens);
  for (int32_t i = int32_t(blockIdx.x); i < tiles.count() * pieces; i += int32_t(gridDim.x)) {
    const MoeItem item(tiles, i, pieces);
    multiply_rows<down>({plan, tiles.lists.entries, item.tile}, item.piece);
  }
}

/// Adds the parts of a token to x, in order.
__global__ void __launch_bounds__(kThreads) moe_combine(const MoePlan plan) {
  grid_dependency_launch();
  grid_dependency_wait();
  if (int32_t(blockIdx.y) >= plan.step->tokens) return;
  moe_combine_row(plan, blockIdx.y, int32_t(blockIdx.x) * kThreads + int32_t(threadIdx.x));
}

template <Format format, bool down>
cudaError_t launch_format(const MoePlan& plan, uint32_t sets, const CudaTarget& target) {
  const MoeArgs& args = plan.args;
  int32_t in = 0;
  if (sets & kMoeRouted) in = down ? args.down.in : args.up.in;
  if (sets & kMoeShared) in = std::max(in, down ? args.shared_down.in : args.shared_up.in);
  const size_t shared_bytes = token_tile_bytes(format, in) + MoeLists::bytes(plan);
  const cudaError_t error = allow_shared_memory(moe_multiply<format, down>, shared_bytes);
  if (error != cudaSuccess) return error;
  return launch(target, {kBlocks * unsigned(target.multiprocessors), kThreads, shared_bytes},
                moe_multiply<format, down>, plan, sets, in);
}

template <bool down>
cudaError_t launch_rows(const MoePlan& plan, uint32_t sets, const CudaTarget& target) {
  const LaunchShape shape = {2 * unsigned(target.multiprocessors), kThreads, MoeLists::bytes(plan)};
  const cudaError_t error = allow_shared_memory(moe_multiply_rows<down>, shape.shared_bytes);
  if (error != cudaSuccess) return error;
  return launch(target, shape, moe_multiply_rows<down>, plan, sets);
}

template <bool down>
cudaError_t launch_set(const MoePlan& plan, uint32_t sets, const CudaTarget& target) {
  const MoeArgs& args = plan.args;
  const WeightView& view =
      sets & kMoeRouted ? (down ? args.down : args.up) : (down ? args.shared_down : args.shared_up);
  if (view.layout == Layout::columns) return moe_down_columns_dense(plan, sets, target);
  switch (view.format) {
    case Format::f32:
      return launch_rows<down>(plan, sets, target);
    case Format::bf16:
      return launch_format<Format::bf16, down>(plan, sets, target);
    case Format::e4m3:
      return launch_format<Format::e4m3, down>(plan, sets, target);
    case Format::nvfp4:
      return launch_format<Format::nvfp4, down>(plan, sets, target);
    case Format::compact_bf16:
      break;
  }
  return cudaErrorInvalidValue;
}

/// One launch for all experts where they are of one kind.
template <bool down>
cudaError_t launch_sets(const MoePlan& plan, const CudaTarget& target) {
  const MoeArgs& args = plan.args;
  const WeightView& routed = down ? args.down : args.up;
  const WeightView& shared = down ? args.shared_down : args.shared_up;
  if (!plan.has_shared()) return launch_set<down>(plan, kMoeRouted, target);
  if (routed.format == shared.format && routed.layout == shared.layout) {
    return launch_set<down>(plan, kMoeRouted | kMoeShared, target);
  }
  const cudaError_t error = launch_set<down>(plan, kMoeShared, target);
  return error == cudaSuccess ? launch_set<down>(plan, kMoeRouted, target) : error;
}

}  // namespace

cudaError_t moe_up_tiles(const MoePlan& plan, const CudaTarget& target) {
  return launch_sets<false>(plan, target);
}

cudaError_t moe_down_tiles(const MoePlan& plan, const CudaTarget& target) {
  const cudaError_t error = launch_sets<true>(plan, target);
  if (error != cudaSuccess) return error;
  const unsigned pieces = unsigned((plan.args.hidden + kThreads - 1) / kThreads);
  return launch(target, {{pieces, unsigned(plan.args.tokens)}, kThreads}, moe_combine, plan);
}

}  // namespace nibblet
