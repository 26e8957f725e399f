#include "kernels/linear/fragments.cuh"
#include "kernels/moe/route.cuh"

namespace nibblet {
namespace {

using namespace fragments;

constexpr Format nvfp4 = Format::nvfp4;
constexpr int32_t kUnitBytes = int32_t(fragment_unit_bytes(nvfp4));
/// Row tiles that a block works on at once.
constexpr int kPassTiles = 8;
/// Vectors of x and norm that a thread keeps.
constexpr int kAhead = 3;

/// The row tiles of one pass of a block: tile i is number blockIdx.x + (first + i) · gridDim.x of all, the shared expert's
/// before those of the chosen, whose units are dealt out to the warps.
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

/// Where a warp is in its units of a pass: every warps-th from number `warp` on.
struct Walk {
  int32_t tile = 0;
  int32_t unit;
  __device__ Walk(int32_t warp, int32_t units) : unit(warp) { settle(units); }
  __device__ void next(int32_t warps, int32_t units) {
    unit += warps;
    settle(units);
  }
  __device__ void settle(int32_t units) {
    while (unit >= units) {
      unit -= units;
      ++tile;
    }
  }
};

/// Slots in shared memory through which a warp's units come, in the order of fetch(). All lanes make every call. With
/// kBulk the copy engine fills them, otherwise the lanes do, and there are kMoeUpCopyStages.
template <bool kBulk>
class Slots {
 public:
  __device__ Slots(uint8_t* slots, uint64_t* barriers, int32_t stages, int32_t lane)
      : slots_(slots),
        barriers_(barriers),
        stages_(kBulk ? stages : kMoeUpCopyStages),
        lane_(lane),
        policy_(evict_first_policy()) {
    if constexpr (kBulk) {
      if (lane == 0) {
        for (int32_t i = 0; i < stages_; ++i) mbarrier_init(barriers_ + i, 1);
        mbarrier_init_fence();
      }
      __syncwarp();
    }
  }
  __device__ int32_t stages() const { return stages_; }

  /// Fills the next slot; with null it stays as it is, not to be waited for.
  __device__ void fetch(const uint8_t* from) {
    uint8_t* slot = slots_ + fetched_ * kUnitBytes;
    if constexpr (kBulk) {
      if (from != nullptr && lane_ == 0) {
        mbarrier_arrive(barriers_ + fetched_, uint32_t(kUnitBytes));
        copy_bulk(slot, from, uint32_t(kUnitBytes), barriers_ + fetched_, policy_);
      }
    } else {
      if (from != nullptr) copy_unit<nvfp4>(slot, from, lane_);
      copy_async_commit();
    }
    if (++fetched_ == stages_) fetched_ = 0;
  }
  /// The oldest unit that was not read yet; `stages` fetches lie between that of it and this call.
  __device__ Unit<nvfp4> read() {
    if constexpr (kBulk) {
      mbarrier_wait(barriers_ + next_, parity_);
    } else {
      copy_async_wait<kMoeUpCopyStages - 1>();
      __syncwarp();
    }
    const Unit<nvfp4> unit = read_unit<nvfp4>(slots_ + next_ * kUnitBytes, lane_);
    __syncwarp();
    if (++next_ == stages_) {
      next_ = 0;
      parity_ ^= 1;
    }
    return unit;
  }
  /// Starts over at the first slot: all that was fetched is read, and what was not fetched counts as read.
  __device__ void restart() {
    if constexpr (!kBulk) copy_async_wait<0>();
    fetched_ = next_;
  }

 private:
  uint8_t* slots_;
  uint64_t* barriers_;
  int32_t stages_;
  int32_t lane_;
  uint64_t policy_;
  int32_t fetched_ = 0;
  int32_t next_ = 0;
  uint32_t parity_ = 0;
};

/// Scale, bias and place of one output row.
struct Row {
  float scale = 0;
  float bias = 0;
  uint16_t* to = nullptr;
  bool exists = false;  ///< unless it pads the matrix

  /// Of the shared expert's rows.
  __device__ void read_shared(const Pass& pass, int32_t row) {
    const MoeArgs& args = pass.plan.args;
    const int32_t tile = row / kFragmentRows;
    if (tile >= pass.tiles || !pass.is_shared(tile)) return;
    const int32_t in_matrix = row % kFragmentRows + pass.number(tile) * kFragmentRows;
    exists = in_matrix < args.shared_up.out;
    to = pass.plan.shared + in_matrix;
    if (exists) scale = args.shared_up.row_scales[in_matrix];
    if (exists && args.shared_up_bias != nullptr) bias = args.shared_up_bias[in_matrix];
  }
  /// Of the others.
  __device__ void read_routed(const Pass& pass, int32_t row, const int32_t* chosen) {
    const MoePlan& plan = pass.plan;
    const MoeArgs& args = plan.args;
    const int32_t tile = row / kFragmentRows;
    if (tile >= pass.tiles || pass.is_shared(tile)) return;
    const int32_t slot = pass.slot(tile);
    const int32_t in_matrix = row % kFragmentRows + pass.place(tile) * kFragmentRows;
    exists = in_matrix < args.up.out;
    to = plan.hidden + slot * plan.width_stride + in_matrix;
    const size_t index = size_t(chosen[slot]) * size_t(args.up.out) + size_t(in_matrix);
    if (exists) scale = args.up.row_scales[index];
    if (exists && args.up_bias != nullptr) bias = args.up_bias[index];
  }
  __device__ void write(float sum) const {
    if (to == nullptr) return;
    float value = exists ? sum * (kOneTokenScale<nvfp4> * scale) + bias : 0.0f;
    // Not a maximum with 0: a NaN must stay one.
    value = value < 0.0f ? 0.0f : value * value;
    *to = bf16_from_float(value);
  }
};

__device__ void write_input(uint16_t* to, int32_t k, float4 x, float4 norm, float inverse) {
  const auto staged = [&](float value, float weight) {
    const float rounded = round_to_bf16(value * inverse * weight) * kInputScale<nvfp4>;
    return uint32_t(bf16_from_float(rounded));
  };
  const uint2 pairs = {staged(x.x, norm.x) | staged(x.y, norm.y) << 16,
                       staged(x.z, norm.z) | staged(x.w, norm.w) << 16};
  *reinterpret_cast<uint2*>(to + k) = pairs;
}

__device__ float4 load4(const float* from) { return __ldcg(reinterpret_cast<const float4*>(from)); }

__device__ float add_squares(float4 x, float sum) {
  return fmaf(x.x, x.x, fmaf(x.y, x.y, fmaf(x.z, x.z, fmaf(x.w, x.w, sum))));
}

/// Shared memory of a block.
struct Memory {
  size_t ring, barriers, sums, x, squares, choice, bytes;
  __host__ __device__ Memory(const MoeArgs& args, int32_t warps, int32_t stages) {
    const size_t units = size_t(fragment_units(nvfp4, args.hidden));
    ring = 0;
    sums = ring + size_t(warps) * size_t(stages) * size_t(kUnitBytes);
    x = sums + size_t(kPassTiles) * units * kFragmentRows * 4;
    barriers = x + units * size_t(fragment_inputs(nvfp4)) * 2;
    squares = barriers + size_t(warps) * size_t(stages) * 8;
    choice = squares + size_t(warps) * 4;
    bytes = choice + MoeChoice::bytes(args);
  }
};

/// Norm, choice of experts and `up` with its activation, for one token. Each block chooses for itself, its first warp
/// while the others read x and the weights of the shared expert are on their way.
template <bool kBulk>
__global__ void __launch_bounds__(512, 1) moe_up_one(const MoePlan plan) {
  grid_dependency_launch();
  const MoeArgs& args = plan.args;
  const int32_t thread = int32_t(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int32_t threads = int32_t(blockDim.x), warps = threads / 32;
  const Memory at(args, warps, plan.up_stages);
  uint8_t* memory = dynamic_shared<uint8_t>();
  float* sums = reinterpret_cast<float*>(memory + at.sums);
  uint16_t* x = reinterpret_cast<uint16_t*>(memory + at.x);
  float* squares = reinterpret_cast<float*>(memory + at.squares);
  const MoeChoice choice(args, memory + at.choice);

  Pass pass(plan, 0);
  const int32_t units = pass.units;
  // Lane i keeps where tile i starts.
  static_assert(kPassTiles <= 32);
  uint64_t start = reinterpret_cast<uint64_t>(pass.weights(lane, nullptr));
  Slots<kBulk> slots(memory + at.ring + warp * plan.up_stages * kUnitBytes,
                     reinterpret_cast<uint64_t*>(memory + at.barriers) + warp * plan.up_stages,
                     plan.up_stages, lane);
  Walk ahead(warp, units);
  const auto fetch = [&] {
    const uint64_t from = __shfl_sync(kWholeWarp, start, ahead.tile % 32);
    slots.fetch(ahead.tile < pass.tiles ? reinterpret_cast<const uint8_t*>(from) + ahead.unit * kUnitBytes
                                        : nullptr);
    ahead.next(warps, units);
  };
  int32_t filled = 0;
  for (; filled < slots.stages() && ahead.tile < pass.tiles && pass.is_shared(ahead.tile); ++filled) fetch();
  Row row;
  row.read_shared(pass, thread);
  // The first warp's x falls to the others.
  const int32_t own = (thread - 32) * 4, stride = (threads - 32) * 4;
  const auto inside = [&](int32_t k) { return warp > 0 && k < args.hidden; };
  float4 norm[kAhead];
#pragma unroll
  for (int i = 0; i < kAhead; ++i) {
    const int32_t k = own + i * stride;
    norm[i] = inside(k) ? *reinterpret_cast<const float4*>(args.norm + k) : make_float4(0, 0, 0, 0);
  }
  if (warp == 0) {
    for (int32_t e = lane; e < args.experts; e += 32) choice.scores[e] = args.bias[e];
  }

  grid_dependency_wait();
  const bool live = plan.step->tokens > 0;
  float4 values[kAhead];
  if (warp == 0) {
    for (int32_t e = lane; e < args.experts; e += 32) {
      choice.set(e, __ldcg(plan.scores + e), choice.scores[e]);
    }
    __syncwarp();
    moe_choose(args, choice);
  } else {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int32_t k = own + i * stride;
      values[i] = inside(k) ? load4(args.x + k) : make_float4(0, 0, 0, 0);
    }
    float square = 0;
#pragma unroll
    for (int i = 0; i < kAhead; ++i) square = add_squares(values[i], square);
    for (int32_t k = own + kAhead * stride; k < args.hidden; k += stride) {
      square = add_squares(load4(args.x + k), square);
    }
    for (int distance = 16; distance > 0; distance /= 2) {
      square += __shfl_xor_sync(kWholeWarp, square, distance);
    }
    if (lane == 0) squares[warp] = square;
  }
  __syncthreads();
  start = reinterpret_cast<uint64_t>(pass.weights(lane, choice.chosen));
  for (; filled < slots.stages(); ++filled) fetch();
  row.read_routed(pass, thread, choice.chosen);
  if (warp > 0) {
    float total = 0;
    for (int32_t w = 1; w < warps; ++w) total += squares[w];
    const float inverse = 1.0f / sqrtf(total / float(args.hidden) + args.epsilon);
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int32_t k = own + i * stride;
      if (inside(k)) write_input(x, k, values[i], norm[i], inverse);
    }
    for (int32_t k = own + kAhead * stride; k < args.hidden; k += stride) {
      write_input(x, k, load4(args.x + k), *reinterpret_cast<const float4*>(args.norm + k), inverse);
    }
  } else {
    for (int32_t k = args.hidden + lane; k < units * fragment_inputs(nvfp4); k += 32) x[k] = 0;
    if (blockIdx.x == 0 && live) moe_publish(args, choice, plan.chosen, plan.weights);
  }
  __syncthreads();

  Token<nvfp4> token;
  while (true) {
    for (Walk walk(warp, units); walk.tile < pass.tiles; walk.next(warps, units)) {
      const Unit<nvfp4> unit = slots.read();
      fetch();
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
#pragma unroll 4
      for (int32_t unit = 0; unit < units; ++unit) sum += from[unit * kFragmentRows];
      row.write(sum);
    }
    if (pass.first + kPassTiles >= pass.of_block()) return;
    // Blocks of more tiles than a pass has: starts afresh, nothing under way.
    __syncthreads();
    slots.restart();
    pass.first += kPassTiles;
    pass.tiles = min(pass.of_block() - pass.first, kPassTiles);
    start = reinterpret_cast<uint64_t>(pass.weights(lane, choice.chosen));
    ahead = Walk(warp, units);
    for (int32_t i = 0; i < slots.stages(); ++i) fetch();
    row = Row();
    row.read_shared(pass, thread);
    row.read_routed(pass, thread, choice.chosen);
  }
}

template <bool kBulk>
cudaError_t launch_copies(const MoePlan& plan, const CudaTarget& target) {
  const size_t shared_bytes = moe_up_alone_bytes(plan);
  const cudaError_t error = allow_shared_memory(moe_up_one<kBulk>, shared_bytes);
  if (error != cudaSuccess) return error;
  const LaunchShape shape = {unsigned(plan.up_blocks), unsigned(plan.up_warps * 32), shared_bytes};
  return launch(target, shape, moe_up_one<kBulk>, plan);
}

}  // namespace

size_t moe_up_alone_bytes(const MoePlan& plan) {
  return Memory(plan.args, plan.up_warps, plan.up_stages).bytes;
}

cudaError_t moe_up_alone(const MoePlan& plan, const CudaTarget& target) {
  if (plan.up_bulk) return launch_copies<true>(plan, target);
  if (plan.up_stages != kMoeUpCopyStages) return cudaErrorInvalidValue;
  return launch_copies<false>(plan, target);
}

}  // namespace nibblet
