#include "kernels/linear/fragments.cuh"
#include "kernels/moe/choice.cuh"

namespace nibblet {
namespace {

using namespace fragments;

constexpr Format nvfp4 = Format::nvfp4;
constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;
/// Units of weights that a warp has under way, and where shared memory is short. More are no faster: 14.6, 15.7, 16.8 and 18.7 us
/// with 4, 6, 8 and 10 through the copy engine, 13.1 with 6 that the lanes copy (nano-30b on an H100).
constexpr int kDepth = 6, kShortDepth = 4;
/// Experts that a lane may have to choose from: 128 or 512 in all.
constexpr int kFewKeys = 4, kManyKeys = 16;
/// Row tiles that a block works on at once.
constexpr int kPassTiles = 8;
/// Vectors of x and norm that a thread keeps.
constexpr int kAhead = 2;

/// The row tiles of one pass of a block: tile i is number blockIdx.x + (first + i) · gridDim.x of all, the shared expert's
/// before those of the chosen, in which a warp multiplies every kWarps-th unit.
struct Pass {
  const MoePlan& plan;
  int32_t units;         ///< of a tile
  int32_t shared_tiles;  ///< of the shared expert
  int32_t routed_tiles;  ///< of one routed expert
  int32_t first;
  int32_t tiles;

  __device__ Pass(const MoePlan& p, int32_t first_tile) : plan(p), first(first_tile) {
    units = fragment_units(nvfp4, p.args.hidden);
    shared_tiles = p.has_shared() ? round_up(p.args.shared_up.out, kFragmentRows) / kFragmentRows : 0;
    routed_tiles = round_up(p.args.up.out, kFragmentRows) / kFragmentRows;
    tiles = min(of_block() - first, kPassTiles);
  }
  __device__ int32_t of_block() const {
    const int32_t all = shared_tiles + routed_tiles * plan.args.top_k;
    return (all - int32_t(blockIdx.x) + int32_t(gridDim.x) - 1) / int32_t(gridDim.x);
  }
  __device__ int32_t number(int32_t tile) const {
    return int32_t(blockIdx.x) + (first + tile) * int32_t(gridDim.x);
  }
  __device__ bool is_shared(int32_t tile) const { return number(tile) < shared_tiles; }

  /// Of a routed tile: which of the chosen experts, and which tile of it.
  __device__ int32_t slot(int32_t tile) const { return (number(tile) - shared_tiles) / routed_tiles; }
  __device__ int32_t place(int32_t tile) const { return (number(tile) - shared_tiles) % routed_tiles; }

  /// Where the weights of a tile start. @param chosen  null: not known yet, which leaves routed tiles null
  __device__ const uint8_t* weights(int32_t tile, const int32_t* chosen) const {
    if (tile >= tiles) return nullptr;
    const size_t bytes = size_t(units) * fragment_unit_bytes(nvfp4);
    if (is_shared(tile)) return plan.args.shared_up.data + size_t(number(tile)) * bytes;
    if (chosen == nullptr) return nullptr;
    const WeightView& up = plan.args.up;
    return up.data + size_t(chosen[slot(tile)]) * up.matrix_bytes + size_t(place(tile)) * bytes;
  }
};

/// Where a warp is in its units of a pass.
struct Walk {
  int32_t tile = 0;
  int32_t unit;
  __device__ Walk(int32_t warp, int32_t units) : unit(warp) { settle(units); }
  __device__ void next(int32_t units) {
    unit += kWarps;
    settle(units);
  }
  __device__ void settle(int32_t units) {
    while (unit >= units) {
      unit -= units;
      ++tile;
    }
  }
};

/// Scale, bias and place of one output row.
struct Row {
  float scale = 0;
  float bias = 0;
  uint16_t* to = nullptr;
  bool exists = false;  ///< unless it pads the matrix

  __device__ Row(const Pass& pass, int32_t row, const int32_t* chosen) {
    const MoePlan& plan = pass.plan;
    const MoeArgs& args = plan.args;
    const int32_t tile = row / kFragmentRows;
    if (tile >= pass.tiles) return;
    int32_t in_matrix = row % kFragmentRows;
    if (pass.is_shared(tile)) {
      in_matrix += pass.number(tile) * kFragmentRows;
      exists = in_matrix < args.shared_up.out;
      to = plan.shared + in_matrix;
      if (exists) scale = args.shared_up.row_scales[in_matrix];
      if (exists && args.shared_up_bias != nullptr) bias = args.shared_up_bias[in_matrix];
    } else {
      const int32_t slot = pass.slot(tile);
      in_matrix += pass.place(tile) * kFragmentRows;
      exists = in_matrix < args.up.out;
      to = plan.hidden + slot * plan.width_stride + in_matrix;
      const size_t index = size_t(chosen[slot]) * size_t(args.up.out) + size_t(in_matrix);
      if (exists) scale = args.up.row_scales[index];
      if (exists && args.up_bias != nullptr) bias = args.up_bias[index];
    }
  }
  __device__ void write(float sum) const {
    if (to == nullptr) return;
    float value = exists ? sum * (kOneTokenScale<nvfp4> * scale) + bias : 0.0f;
    // Not a maximum with 0: a NaN must stay one.
    value = value < 0.0f ? 0.0f : value * value;
    *to = bf16_from_float(value);
  }
};

/// x̂ · kInputScale, a power of two, of four inputs.
__device__ void write_input(uint16_t* to, int32_t k, float4 x, float4 norm, float inverse) {
  const float factor = inverse * kInputScale<nvfp4>;
  const uint2 pairs = {bf16_pair_from_floats(x.x * factor * norm.x, x.y * factor * norm.y),
                       bf16_pair_from_floats(x.z * factor * norm.z, x.w * factor * norm.w)};
  *reinterpret_cast<uint2*>(to + k) = pairs;
}

__device__ float warp_sum(float value) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(kWholeWarp, value, distance);
  return value;
}

__device__ float4 load4(const float* from) { return __ldcg(reinterpret_cast<const float4*>(from)); }

__device__ float add_squares(float4 x, float sum) {
  return fmaf(x.x, x.x, fmaf(x.y, x.y, fmaf(x.z, x.z, fmaf(x.w, x.w, sum))));
}

/// Shared memory of a block.
struct Memory {
  size_t ring, sums, x, squares, chosen, scores, bytes;
  __host__ __device__ Memory(const MoeArgs& args, int depth) {
    const size_t units = size_t(fragment_units(nvfp4, args.hidden));
    ring = 0;
    sums = ring + size_t(kWarps) * size_t(depth) * fragment_unit_bytes(nvfp4);
    x = sums + size_t(kPassTiles) * units * kFragmentRows * 4;
    squares = x + units * size_t(fragment_inputs(nvfp4)) * 2;
    chosen = squares + kWarps * 4;
    scores = chosen + kWarps * size_t(args.top_k) * 4;
    bytes = scores + size_t(args.top_k) * 4;
  }
};

/// Norm, choice of experts and `up` with its activation, for one token. Each warp chooses for itself while the weights of
/// the shared expert are on their way.
template <int depth, int keys>
__global__ void __launch_bounds__(kThreads, 2) moe_up_one(const MoePlan plan) {
  grid_dependency_launch();
  const MoeArgs& args = plan.args;
  const Memory at(args, depth);
  uint8_t* memory = dynamic_shared<uint8_t>();
  const int32_t thread = int32_t(threadIdx.x), warp = thread / 32, lane = thread % 32;
  uint8_t* ring = memory + at.ring + size_t(warp) * depth * fragment_unit_bytes(nvfp4);
  float* sums = reinterpret_cast<float*>(memory + at.sums);
  uint16_t* x = reinterpret_cast<uint16_t*>(memory + at.x);
  float* squares = reinterpret_cast<float*>(memory + at.squares);
  int32_t* chosen = reinterpret_cast<int32_t*>(memory + at.chosen) + warp * args.top_k;
  MoeWarpChoice<keys> choice(args);

  Pass pass(plan, 0);
  const int32_t units = pass.units;
  // Lane i keeps where tile i starts.
  static_assert(kPassTiles <= 32);
  uint64_t start = reinterpret_cast<uint64_t>(pass.weights(lane, nullptr));
  const auto copy = [&](const Walk& walk, int32_t slot) {
    const uint64_t from = __shfl_sync(kWholeWarp, start, walk.tile);
    copy_unit<nvfp4>(ring + slot * int32_t(fragment_unit_bytes(nvfp4)),
                     reinterpret_cast<const uint8_t*>(from) + walk.unit * int32_t(fragment_unit_bytes(nvfp4)),
                     lane);
  };
  Walk ahead(warp, units);
  int32_t filled = 0;
#pragma unroll 1
  for (; filled < depth && ahead.tile < pass.tiles && pass.is_shared(ahead.tile); ++filled) {
    copy(ahead, filled);
    copy_async_commit();
    ahead.next(units);
  }
  float4 norm[kAhead];
#pragma unroll
  for (int i = 0; i < kAhead; ++i) {
    const int32_t k = (thread + i * kThreads) * 4;
    norm[i] = k < args.hidden ? *reinterpret_cast<const float4*>(args.norm + k) : make_float4(0, 0, 0, 0);
  }

  grid_dependency_wait();
  float4 values[kAhead];
  float square = 0;
#pragma unroll
  for (int i = 0; i < kAhead; ++i) {
    const int32_t k = (thread + i * kThreads) * 4;
    values[i] = k < args.hidden ? load4(args.x + k) : make_float4(0, 0, 0, 0);
  }
  const bool live = plan.step->tokens > 0;
  choice.read(args, plan.scores);
#pragma unroll
  for (int i = 0; i < kAhead; ++i) square = add_squares(values[i], square);
#pragma unroll 1
  for (int32_t k = (thread + kAhead * kThreads) * 4; k < args.hidden; k += kThreads * 4) {
    square = add_squares(load4(args.x + k), square);
  }
  square = warp_sum(square);
  if (lane == 0) squares[warp] = square;
  __syncthreads();

  // x̂ before the routed weights are sent for: whoever asks for more than the machine takes at once stands still.
  const float total = warp_sum(lane < kWarps ? squares[lane] : 0.0f);
  const float inverse = 1.0f / sqrtf(total / float(args.hidden) + args.epsilon);
#pragma unroll
  for (int i = 0; i < kAhead; ++i) {
    const int32_t k = (thread + i * kThreads) * 4;
    if (k < args.hidden) write_input(x, k, values[i], norm[i], inverse);
  }
#pragma unroll 1
  for (int32_t k = (thread + kAhead * kThreads) * 4; k < args.hidden; k += kThreads * 4) {
    write_input(x, k, load4(args.x + k), *reinterpret_cast<const float4*>(args.norm + k), inverse);
  }
#pragma unroll 1
  for (int32_t k = args.hidden + thread; k < units * fragment_inputs(nvfp4); k += kThreads) x[k] = 0;
  choice.choose(args, chosen);
  start = reinterpret_cast<uint64_t>(pass.weights(lane, chosen));
#pragma unroll 1
  for (; filled < depth; ++filled) {
    if (ahead.tile < pass.tiles) copy(ahead, filled);
    copy_async_commit();
    ahead.next(units);
  }
  if (blockIdx.x == 0 && warp == 0 && live) {
    choice.store(args, chosen, reinterpret_cast<float*>(memory + at.scores), plan.chosen, plan.weights);
  }
  __syncthreads();

  while (true) {
    const Row row(pass, thread, chosen);
    Token<nvfp4> token;
    int32_t slot = 0;
    for (Walk walk(warp, units); walk.tile < pass.tiles; walk.next(units)) {
      copy_async_wait<depth - 1>();
      __syncwarp();
      const Unit<nvfp4> unit = read_unit<nvfp4>(ring + size_t(slot) * fragment_unit_bytes(nvfp4), lane);
      __syncwarp();
      if (ahead.tile < pass.tiles) copy(ahead, slot);
      copy_async_commit();
      ahead.next(units);
      slot = slot + 1 == depth ? 0 : slot + 1;
      token.read(x + walk.unit * fragment_inputs(nvfp4), lane);
      RowSums<nvfp4> rows;
      rows.add(unit, token);
      rows.finish();
      if (lane % 4 == 0) {
        float* to = sums + (walk.tile * units + walk.unit) * kFragmentRows + lane / 4;
        to[0] = rows.upper;
        to[8] = rows.lower;
      }
    }
    __syncthreads();
    if (live && thread < pass.tiles * kFragmentRows) {
      const float* from = sums + thread / kFragmentRows * units * kFragmentRows + thread % kFragmentRows;
      float sum = 0;
#pragma unroll 7
      for (int32_t unit = 0; unit < units; ++unit) sum += from[unit * kFragmentRows];
      row.write(sum);
    }
    if (pass.first + kPassTiles >= pass.of_block()) return;
    // Blocks of more tiles than a pass has: starts afresh, nothing under way.
    __syncthreads();
    copy_async_wait<0>();
    pass.first += kPassTiles;
    pass.tiles = min(pass.of_block() - pass.first, kPassTiles);
    start = reinterpret_cast<uint64_t>(pass.weights(lane, chosen));
    ahead = Walk(warp, units);
#pragma unroll 1
    for (int i = 0; i < depth; ++i) {
      if (ahead.tile < pass.tiles) copy(ahead, i);
      copy_async_commit();
      ahead.next(units);
    }
  }
}

template <int depth, int keys>
cudaError_t launch_up(const MoePlan& plan, const CudaTarget& target) {
  const MoeArgs& args = plan.args;
  const size_t shared_bytes = Memory(args, depth).bytes;
  const cudaError_t error = allow_shared_memory(moe_up_one<depth, keys>, shared_bytes);
  if (error != cudaSuccess) return error;
  const int tiles = (round_up(args.up.out, kFragmentRows) * args.top_k +
                     (plan.has_shared() ? round_up(args.shared_up.out, kFragmentRows) : 0)) /
                    kFragmentRows;
  const int blocks = tiles < target.multiprocessors ? tiles : target.multiprocessors;
  return launch(target, {unsigned(blocks), kThreads, shared_bytes}, moe_up_one<depth, keys>, plan);
}

}  // namespace

bool moe_up_alone_fits(const MoeArgs& args, const CudaTarget& target) {
  return args.topk_groups == args.groups && args.experts <= MoeWarpChoice<kManyKeys>::kMost &&
         Memory(args, kShortDepth).bytes <= target.shared_bytes;
}

cudaError_t moe_up_alone(const MoePlan& plan, const CudaTarget& target) {
  const bool roomy = Memory(plan.args, kDepth).bytes <= target.shared_bytes;
  if (plan.args.experts <= MoeWarpChoice<kFewKeys>::kMost) {
    return roomy ? launch_up<kDepth, kFewKeys>(plan, target) : launch_up<kShortDepth, kFewKeys>(plan, target);
  }
  return roomy ? launch_up<kDepth, kManyKeys>(plan, target) : launch_up<kShortDepth, kManyKeys>(plan, target);
}

}  // namespace nibblet
