#include <algorithm>

#include "kernels/linear/fragments.cuh"
#include "kernels/moe/tiles.cuh"

namespace nibblet {
namespace {

using namespace fragments;

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
/// Units of weights that a warp has under way.
constexpr int kDepth = 4;
/// Row tiles of one expert that a block works on at once, if shared memory allows.
constexpr int kPassTiles = 8;
/// The units of a row tile are summed in that many parts, or fewer. It must not depend on anything but their number, so
/// that neither do a token's sums.
constexpr int kMostParts = 4;
constexpr int kPartUnits = 8;
/// Floats from one token's sums of 16 rows to the next token's: lanes then write to different banks.
constexpr int kSumStride = kFragmentRows + 4;
constexpr int kSumFloats = kSumStride * kMoeTileTokens;
/// Rows of an item of weights in rows.
constexpr int32_t kItemRows = kWarps * kFragmentRows;

/// Where part `index` of `parts` of `count` things starts.
__device__ int32_t share(int32_t count, int32_t index, int32_t parts) {
  return int32_t(int64_t{count} * index / parts);
}

__host__ __device__ constexpr int32_t parts_of(int32_t units) {
  const int32_t parts = (units + kPartUnits - 1) / kPartUnits;
  return parts < kMostParts ? parts : kMostParts;
}

/// The row tiles of all tiles of tokens in a row, cut into one stretch a block of about equally many units.
template <Format format, bool down>
struct Stretch {
  const MoeTiles& tiles;
  int32_t rows, units;                ///< row tiles of a routed expert, and units of each
  int32_t shared_rows, shared_units;  ///< of the shared one
  int32_t first, last;

  __device__ explicit Stretch(const MoeTiles& t) : tiles(t) {
    const MoeArgs& args = t.plan.args;
    const WeightView& routed = down ? args.down : args.up;
    const WeightView& shared = down ? args.shared_down : args.shared_up;
    rows = round_up(routed.out, kFragmentRows) / kFragmentRows;
    shared_rows = t.shared > 0 ? round_up(shared.out, kFragmentRows) / kFragmentRows : 0;
    units = fragment_units(format, routed.in);
    shared_units = fragment_units(format, shared.in);
    const int32_t all = t.shared * shared_rows * shared_units + t.routed * rows * units;
    first = from_unit(share(all, int32_t(blockIdx.x), int32_t(gridDim.x)));
    last = from_unit(share(all, int32_t(blockIdx.x) + 1, int32_t(gridDim.x)));
  }
  /// The first row tile that starts at this unit or later.
  __device__ int32_t from_unit(int32_t unit) const {
    const int32_t shared = t_shared() * shared_units;
    if (unit <= shared) return unit == 0 ? 0 : (unit + shared_units - 1) / shared_units;
    return t_shared() + (unit - shared + units - 1) / units;
  }
  __device__ int32_t t_shared() const { return tiles.shared * shared_rows; }
};

/// Up to `most` row tiles of one expert, with one tile of tokens. Each warp has a stretch of their parts.
template <Format format, bool down>
struct Pass {
  static constexpr int32_t kUnit = int32_t(fragment_unit_bytes(format));
  MoeTile tile = {};
  int32_t tile_index = -1;
  int32_t row = 0;    ///< the first row tile
  int32_t count = 0;  ///< 0: none is left
  int32_t units = 0;  ///< of a row tile
  int32_t parts = 0;  ///< of a row tile
  int32_t begin = 0, end = 0;

  /// @param number  of the first row tile in the stretch
  __device__ Pass(const Stretch<format, down>& stretch, int32_t number, int32_t most, int32_t warp) {
    if (number >= stretch.last) return;
    const bool shared = number < stretch.t_shared();
    const int32_t in_set = shared ? number : number - stretch.t_shared();
    const int32_t rows = shared ? stretch.shared_rows : stretch.rows;
    tile_index = in_set / rows + (shared ? 0 : stretch.tiles.shared);
    row = in_set % rows;
    tile = stretch.tiles[tile_index];
    count = min(min(stretch.last - number, rows - row), most);
    units = shared ? stretch.shared_units : stretch.units;
    parts = parts_of(units);
    begin = share(count * parts, warp, kWarps);
    end = share(count * parts, warp + 1, kWarps);
  }
  /// The first unit of a part, counted from the first row tile on.
  __device__ int32_t unit_of(int32_t part) const {
    return part / parts * units + part % parts * units / parts;
  }
  __device__ const uint8_t* weights(const MoeTileProduct<down>& product) const {
    return product.data() + (size_t(row) * size_t(units) + size_t(unit_of(begin))) * size_t(kUnit);
  }
};

/// Shared memory of a block.
struct Memory {
  size_t tokens, sums, lists, bytes;
  __host__ __device__ Memory(const MoePlan& plan, Format format, int32_t most_in, int32_t pass_tiles) {
    tokens = size_t(kWarps) * kDepth * fragment_unit_bytes(format);
    sums = tokens + token_tile_bytes(format, most_in);
    lists = sums + size_t(pass_tiles * parts_of(fragment_units(format, most_in))) * kSumFloats * 4;
    bytes = lists + MoeLists::bytes(plan);
  }
};

/// Brings the inputs of a tile of tokens into the order in which lanes read them; zeros for tokens that are not there.
template <Format format, bool down>
__device__ void stage_tokens(const MoeTileProduct<down>& product, uint8_t* to) {
  const int32_t in = product.weight().in, padded = round_up(in, kBlockInputs);
  const int32_t pieces = fragment_units(format, in) * fragment_inputs(format) / 8;
  const int32_t warp = int32_t(threadIdx.x) / 32, lane = int32_t(threadIdx.x) % 32;
  static_assert(kWarps == kMoeTileTokens);
  const bool exists = warp < product.tile.count;
  const uint4* from = reinterpret_cast<const uint4*>(product.input(exists ? warp : 0));
#pragma unroll 4
  for (int32_t piece = lane; piece < pieces; piece += 32) {
    const bool inside = exists && piece * 8 < padded;
    *reinterpret_cast<uint4*>(to + token_piece_offset(format, warp, piece * 8)) =
        inside ? __ldcg(from + piece) : make_uint4(0, 0, 0, 0);
  }
}

/// `up` or `down` of many tokens. The sums of each part of a row tile have a slot of their own.
template <Format format, bool down>
__global__ void __launch_bounds__(kThreads, 2)
    moe_multiply(const MoePlan plan, const uint32_t sets, const int32_t most_in, const int32_t pass_tiles) {
  constexpr int32_t kUnit = int32_t(fragment_unit_bytes(format));
  grid_dependency_launch();
  const Memory at(plan, format, most_in, pass_tiles);
  uint8_t* memory = dynamic_shared<uint8_t>();
  const int32_t warp = int32_t(threadIdx.x) / 32, lane = int32_t(threadIdx.x) % 32;
  uint8_t* ring = memory + warp * kDepth * kUnit;
  const uint8_t* tokens = memory + at.tokens;
  float* sums = reinterpret_cast<float*>(memory + at.sums);
  grid_dependency_wait();
  const MoeTiles tiles(plan, sets, memory + at.lists);
  if (!down && (sets & kMoeRouted) && blockIdx.x == 0) tiles.lists.publish(plan, tiles.tokens);
  const Stretch<format, down> stretch(tiles);
  const auto start = [&](const Pass<format, down>& pass) {
    const uint8_t* weights = nullptr;
    if (pass.count > 0) weights = pass.weights({plan, tiles.lists.entries, pass.tile});
    const int32_t units = pass.count > 0 ? pass.unit_of(pass.end) - pass.unit_of(pass.begin) : 0;
#pragma unroll
    for (int i = 0; i < kDepth; ++i) {
      if (i < units) copy_unit<format>(ring + i * kUnit, weights + i * kUnit, lane);
      copy_async_commit();
    }
  };
  int32_t number = stretch.first, staged = -1;
  Pass<format, down> pass(stretch, number, pass_tiles, warp);
  start(pass);
  while (pass.count > 0) {
    const MoeTileProduct<down> product = {plan, tiles.lists.entries, pass.tile};
    if (pass.tile_index != staged) stage_tokens<format, down>(product, memory + at.tokens);
    staged = pass.tile_index;
    __syncthreads();
    const uint8_t* ahead = pass.weights(product) + kDepth * kUnit;
    int32_t left = pass.unit_of(pass.end) - pass.unit_of(pass.begin), slot = 0;
    for (int32_t part = pass.begin; part < pass.end; ++part) {
      const int32_t first = pass.unit_of(part) - part / pass.parts * pass.units;
      const int32_t last = first + pass.unit_of(part + 1) - pass.unit_of(part);
      const uint8_t* inputs = tokens + first * fragment_inputs(format) * 16;
      float c[2][4] = {};
      for (int32_t unit = first; unit < last; ++unit) {
        copy_async_wait<kDepth - 1>();
        __syncwarp();
        const Unit<format> weights = read_unit<format>(ring + slot * kUnit, lane);
        __syncwarp();
        if (left > kDepth) copy_unit<format>(ring + slot * kUnit, ahead, lane);
        copy_async_commit();
        --left;
        ahead += kUnit;
        slot = slot + 1 == kDepth ? 0 : slot + 1;
        TokenTile<format> tile;
        tile.read(inputs, lane);
        inputs += fragment_inputs(format) * 16;
        for_each_mma(weights, [&](int i, const uint32_t (&a)[4]) {
          mma_bf16(c[i % 2], a[0], a[1], a[2], a[3], tile.b0(i), tile.b1(i));
        });
      }
      float* to = sums + part * kSumFloats + lane % 4 * 2 * kSumStride + lane / 4;
#pragma unroll
      for (int i = 0; i < 4; ++i) to[i % 2 * kSumStride + i / 2 * 8] = c[0][i] + c[1][i];
    }
    number += pass.count;
    const Pass<format, down> next(stretch, number, pass_tiles, warp);
    start(next);
    __syncthreads();
    for (int32_t i = int32_t(threadIdx.x); i < pass.count * kFragmentRows * pass.tile.count; i += kThreads) {
      const int32_t r = i % kFragmentRows, row_tile = i / kFragmentRows % pass.count;
      const int32_t token = i / kFragmentRows / pass.count;
      const float* from = sums + row_tile * pass.parts * kSumFloats + token * kSumStride + r;
      float sum = 0;
      for (int32_t part = 0; part < pass.parts; ++part) sum += from[part * kSumFloats];
      product.store(token, (pass.row + row_tile) * kFragmentRows + r, sum * kTokensScale<format>);
    }
    pass = next;
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
  int32_t in = 0;
  if (sets & kMoeRouted) in = down ? args.down.in : args.up.in;
  if (sets & kMoeShared) in = std::max(in, down ? args.shared_down.in : args.shared_up.in);
  int32_t pass_tiles = kPassTiles;
  while (pass_tiles > 1 && Memory(plan, format, in, pass_tiles).bytes > target.shared_bytes) --pass_tiles;
  const size_t shared_bytes = Memory(plan, format, in, pass_tiles).bytes;
  const cudaError_t error = allow_shared_memory(moe_multiply<format, down>, shared_bytes);
  if (error != cudaSuccess) return error;
  return launch(target, {2 * unsigned(target.multiprocessors), kThreads, shared_bytes},
                moe_multiply<format, down>, plan, sets, in, pass_tiles);
}

template <bool down>
cudaError_t launch_set(const MoePlan& plan, uint32_t sets, const CudaTarget& target) {
  const MoeArgs& args = plan.args;
  const WeightView& view =
      sets & kMoeRouted ? (down ? args.down : args.up) : (down ? args.shared_down : args.shared_up);
  if (view.layout == Layout::columns) return moe_down_columns_dense(plan, sets, target);
  switch (view.format) {
    case Format::f32:
      return launch(target, {2 * unsigned(target.multiprocessors), kThreads, MoeLists::bytes(plan)},
                    moe_multiply_rows<down>, plan, sets);
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
