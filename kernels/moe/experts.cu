#include "kernels/linear/fragments.cuh"
#include "kernels/moe/tiles.cuh"

namespace nibblet {
namespace {

using namespace fragments;

constexpr int kThreads = 256;
/// Each warp has a row tile.
constexpr int kWarps = kThreads / 32;
/// Units of weights that a warp has under way.
constexpr int kDepth = 4;
constexpr int32_t kItemRows = kWarps * kFragmentRows;

/// Brings the inputs of a tile of tokens into the order in which lanes read them; zeros for tokens that are not there.
template <Format format, bool down>
__device__ void stage_tokens(const MoeTileProduct<down>& product, uint8_t* to) {
  const int32_t in = product.weight().in, padded = round_up(in, kBlockInputs);
  const int32_t pieces = fragment_units(format, in) * fragment_inputs(format) / 8;
  const int32_t warp = int32_t(threadIdx.x) / 32, lane = int32_t(threadIdx.x) % 32;
  static_assert(kWarps == kMoeTileTokens);
  const bool exists = warp < product.tile.count;
  const uint4* from = reinterpret_cast<const uint4*>(product.input(exists ? warp : 0));
  for (int32_t piece = lane; piece < pieces; piece += 32) {
    const bool inside = exists && piece * 8 < padded;
    *reinterpret_cast<uint4*>(to + token_piece_offset(format, warp, piece * 8)) =
        inside ? __ldcg(from + piece) : make_uint4(0, 0, 0, 0);
  }
}

/// Multiplies a row tile a warp with the tokens of an item.
template <Format format, bool down>
__device__ void multiply(const MoeTileProduct<down>& product, int32_t piece, uint8_t* memory) {
  constexpr size_t kUnit = fragment_unit_bytes(format);
  const int32_t warp = int32_t(threadIdx.x) / 32, lane = int32_t(threadIdx.x) % 32;
  const WeightView& view = product.weight();
  const int32_t units = fragment_units(format, view.in);
  const int32_t row = (piece * kWarps + warp) * kFragmentRows;
  const bool works = row < view.out;
  const uint8_t* weights = product.data() + size_t(piece * kWarps + warp) * size_t(units) * kUnit;
  uint8_t* ring = memory + size_t(warp) * kDepth * kUnit;
  uint8_t* tokens = memory + size_t(kWarps) * kDepth * kUnit;
#pragma unroll
  for (int i = 0; i < kDepth; ++i) {
    if (works && i < units) copy_unit<format>(ring + i * kUnit, weights + i * kUnit, lane);
    copy_async_commit();
  }
  stage_tokens<format, down>(product, tokens);
  __syncthreads();
  if (!works) return;

  float c[2][4] = {};
  int32_t slot = 0;
  for (int32_t u = 0; u < units; ++u) {
    copy_async_wait<kDepth - 1>();
    __syncwarp();
    const Unit<format> unit = read_unit<format>(ring + slot * kUnit, lane);
    __syncwarp();
    if (u + kDepth < units) {
      copy_unit<format>(ring + slot * kUnit, weights + size_t(u + kDepth) * kUnit, lane);
    }
    copy_async_commit();
    slot = slot + 1 == kDepth ? 0 : slot + 1;
    TokenTile<format> tile;
    tile.read(tokens + size_t(u) * size_t(fragment_inputs(format)) * 16, lane);
    for_each_mma(unit, [&](int i, const uint32_t (&a)[4]) {
      mma_bf16(c[i % 2], a[0], a[1], a[2], a[3], tile.b0(i), tile.b1(i));
    });
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int32_t token = lane % 4 * 2 + i % 2;
    if (token < product.tile.count) {
      product.store(token, row + lane / 4 + i / 2 * 8, (c[0][i] + c[1][i]) * kTokensScale<format>);
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
      for (int distance = 16; distance > 0; distance /= 2) {
        sum += __shfl_xor_sync(kWholeWarp, sum, distance);
      }
      if (lane == 0) product.store(i, row, sum);
    }
  }
}

/// `up` or `down` of many tokens: items of a tile of tokens and kItemRows rows of its expert, dealt out to the blocks.
template <Format format, bool down>
__global__ void __launch_bounds__(kThreads, 2) moe_multiply(const MoePlan plan, const uint32_t sets) {
  grid_dependency_launch();
  grid_dependency_wait();
  const auto pieces = [](const WeightView& view) { return (view.out + kItemRows - 1) / kItemRows; };
  const MoeArgs& args = plan.args;
  const MoeItems items(plan, sets, pieces(down ? args.down : args.up),
                       pieces(down ? args.shared_down : args.shared_up));
  for (int32_t item = int32_t(blockIdx.x); item < items.count(); item += int32_t(gridDim.x)) {
    int32_t piece;
    const MoeTile tile = items.tile(plan, item, piece);
    const MoeTileProduct<down> product = {plan, tile};
    if constexpr (format == Format::f32) {
      multiply_rows(product, piece);
    } else {
      multiply<format, down>(product, piece, dynamic_shared<uint8_t>());
      __syncthreads();
    }
  }
}

/// Adds the parts of a token to x, in order.
__global__ void __launch_bounds__(kThreads) moe_combine(const MoePlan plan) {
  grid_dependency_launch();
  grid_dependency_wait();
  const size_t token = blockIdx.y, hidden = size_t(plan.args.hidden);
  const size_t row = size_t(blockIdx.x) * kThreads + threadIdx.x;
  if (int32_t(token) >= plan.step->tokens || row >= hidden) return;
  const float* from = plan.outputs + token * size_t(plan.parts) * hidden + row;
  float sum = 0;
#pragma unroll 4
  for (int32_t part = 0; part < plan.parts; ++part) sum += __ldcg(from + size_t(part) * hidden);
  plan.args.x[token * hidden + row] += sum;
}

template <Format format, bool down>
cudaError_t launch_format(const MoePlan& plan, uint32_t sets, const CudaTarget& target) {
  const MoeArgs& args = plan.args;
  const WeightView& routed = down ? args.down : args.up;
  const WeightView& shared = down ? args.shared_down : args.shared_up;
  int32_t in = 0, out = 0;
  if (sets & kMoeRouted) in = routed.in, out = routed.out;
  if (sets & kMoeShared) in = in > shared.in ? in : shared.in, out = out > shared.out ? out : shared.out;
  size_t shared_bytes = 0;
  if (format != Format::f32) {
    shared_bytes = size_t(kWarps) * kDepth * fragment_unit_bytes(format) + token_tile_bytes(format, in);
  }
  const cudaError_t error = allow_shared_memory(moe_multiply<format, down>, shared_bytes);
  if (error != cudaSuccess) return error;
  const int64_t items = moe_most_tiles(args, sets) * ((out + kItemRows - 1) / kItemRows);
  const int64_t blocks = 2 * int64_t(target.multiprocessors);
  return launch(target, {unsigned(items < blocks ? items : blocks), kThreads, shared_bytes},
                moe_multiply<format, down>, plan, sets);
}

template <bool down>
cudaError_t launch_set(const MoePlan& plan, uint32_t sets, const CudaTarget& target) {
  const MoeArgs& args = plan.args;
  const WeightView& view =
      sets & kMoeRouted ? (down ? args.down : args.up) : (down ? args.shared_down : args.shared_up);
  if (view.layout == Layout::columns) return moe_down_columns_dense(plan, sets, target);
  switch (view.format) {
    case Format::f32:
      return launch_format<Format::f32, down>(plan, sets, target);
    case Format::bf16:
      return launch_format<Format::bf16, down>(plan, sets, target);
    case Format::e4m3:
      return launch_format<Format::e4m3, down>(plan, sets, target);
    case Format::nvfp4:
      return launch_format<Format::nvfp4, down>(plan, sets, target);
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
