#include "kernels/moe/columns.cuh"
#include "kernels/moe/combine.cuh"
#include "kernels/moe/nonzero.cuh"
#include "kernels/moe/plan.h"
#include "kernels/pack/layout.h"

/// `down` of several tokens. Each is summed for itself, so that its sums do not depend on the others; the cache holds what
/// tokens share.

namespace nibblet {
namespace {

using columns::kHalfUnit;

/// Most warps of a block, which all have the same columns and 128 rows each.
constexpr int kMostWarps = 7;
constexpr int kMostThreads = 32 * kMostWarps;
/// Fewest: a thread for each block of inputs that is listed.
constexpr int kFewestWarps = kMoeListBlocks / 32;
/// Live columns that are multiplied at once: what one mma takes.
constexpr int kStep = 16;
/// Steps whose columns are on their way or in use.
constexpr int kStages = 2;
/// Bytes from one column to the next in shared memory, of codes and of block scales: neighbours lie in other banks.
constexpr int kCodesStride = 64 + 16;
constexpr int kScalesStride = kColumnRows + 16;
constexpr int kStageBytes = kStep * (kCodesStride + kScalesStride);
/// Columns that a list has room for.
constexpr int kListed = kMoeListBlocks * kBlockInputs + kStep;
/// kHalfUnit twice in bf16.
constexpr uint32_t kHalfUnits = 0x5d805d80u;

/// The columns that an activation multiplies, padded to whole steps with activations of zero.
struct Listed {
  uint32_t codes;   ///< where the column starts, in bytes
  uint32_t scales;  ///< where its block starts
};
struct List {
  Listed* columns;        ///< [kListed]
  uint16_t* activations;  ///< [kListed] times 2⁶⁰
};

/// Makes the list of up to kMoeListBlocks blocks of 16 inputs, one a thread. By all threads of a block, kMoeListBlocks or more.
/// @param scratch  32 · kMoeListBlocks bytes
/// @return the steps in it
__device__ int32_t list_steps(const uint16_t* hidden, int32_t blocks, int32_t out, const List& list,
                              uint16_t* scratch, int32_t* counts) {
  const int32_t thread = int32_t(threadIdx.x);
  uint16_t* const own = scratch + thread * kBlockInputs;
  uint32_t live = 0;
  if (thread < blocks) {
    const uint4* from = reinterpret_cast<const uint4*>(hidden) + thread * 2;
    const uint4 halves[2] = {__ldcg(from), __ldcg(from + 1)};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      reinterpret_cast<uint4*>(own)[i] = halves[i];
      const uint32_t pairs[4] = {halves[i].x, halves[i].y, halves[i].z, halves[i].w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        live |= uint32_t((pairs[j] & 0x7fffu) != 0) << (8 * i + 2 * j);
        live |= uint32_t((pairs[j] & 0x7fff0000u) != 0) << (8 * i + 2 * j + 1);
      }
    }
  }
  const MoeListPlace listed = moe_list_place<kMostThreads>(__popc(live), counts);
  int32_t place = listed.first;
  const uint32_t column_size = uint32_t(column_bytes(out)),
                 block = uint32_t(thread) * uint32_t(column_block_bytes(out));
#pragma unroll 1
  for (; live != 0; live &= live - 1, ++place) {
    const int32_t i = __ffs(int(live)) - 1;
    list.columns[place] = {block + uint32_t(i) * column_size, block};
    list.activations[place] = uint16_t(multiply_bf16x2(own[i], kHalfUnits));
  }
  const int32_t steps = (listed.total + kStep - 1) / kStep;
  if (listed.total + thread < steps * kStep) {
    list.columns[listed.total + thread] = {0, 0};
    list.activations[listed.total + thread] = 0;
  }
  __syncthreads();
  return steps;
}

/// The step's columns of a lane in shared memory: 2t, 2t + 1, 2t + 8 and 2t + 9, of which it has words 2g and 2g + 1. So rows
/// g and g + 8 of an mma's first operand are rows 2g and 2g + 1 of a panel.
struct Columns {
  uint2 codes[4];
  const uint8_t* scales;

  __device__ Columns(const uint8_t* stage, int32_t g, int32_t t)
      : scales(stage + kStep * kCodesStride + 2 * t * kScalesStride + 2 * g) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int32_t column = 2 * t + i % 2 + i / 2 * 8;
      codes[i] = *reinterpret_cast<const uint2*>(stage + column * kCodesStride + 8 * g);
    }
  }

  /// Scales of rows 2g and 2g + 1 of a panel, of columns 2i and 2i + 1 of the four.
  __device__ uint32_t scale_bytes(int panel, int i) const {
    const uint8_t* from = scales + i * 8 * kScalesStride + panel * kPanelRows;
    const uint32_t first = *reinterpret_cast<const uint16_t*>(from);
    const uint32_t second = *reinterpret_cast<const uint16_t*>(from + kScalesStride);
    return __byte_perm(first, second, 0x5410);
  }
};

/// A pair of codes as bf16 times 2⁻¹²⁶: the lower or the upper nibbles of pairs of equal bytes. All shifts go left, which is
/// what the multiplier can do too.
template <bool upper>
__device__ __forceinline__ uint32_t decode_nibble(uint32_t bytes) {
  const uint32_t sign = upper ? bytes : bytes << 4;
  return (sign & 0x80008000u) | ((upper ? bytes << 2 : bytes << 6) & 0x01c001c0u);
}

/// Adds panels 2n and 2n + 1 of a step's columns, times W · 2⁻¹²⁰.
template <int n>
__device__ __forceinline__ void add_panels(const Columns& columns, const uint32_t (&b)[2],
                                           float (&sums)[8][4]) {
  constexpr unsigned kBytes = 0x4400u + 0x1111u * n;
  uint32_t bytes[4];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint2 first = columns.codes[2 * i], second = columns.codes[2 * i + 1];
    bytes[2 * i] = __byte_perm(first.x, second.x, kBytes);
    bytes[2 * i + 1] = __byte_perm(first.y, second.y, kBytes);
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    uint32_t a[4];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint32_t scales = columns.scale_bytes(2 * n + half, i);
      const uint32_t first = multiply_bf16x2(scales << 4 & 0x07f007f0u, columns::kScaleUnit);
      const uint32_t second = multiply_bf16x2(scales >> 4 & 0x07f007f0u, columns::kScaleUnit);
      a[2 * i] = multiply_bf16x2(
          half == 0 ? decode_nibble<false>(bytes[2 * i]) : decode_nibble<true>(bytes[2 * i]), first);
      a[2 * i + 1] = multiply_bf16x2(
          half == 0 ? decode_nibble<false>(bytes[2 * i + 1]) : decode_nibble<true>(bytes[2 * i + 1]), second);
    }
    mma_bf16(sums[2 * n + half], a[0], a[1], a[2], a[3], b[0], b[1]);
  }
}

/// Shared memory of a block of `warps`.
struct Memory {
  static constexpr size_t kActivations = kListed * sizeof(Listed);
  static constexpr size_t kRing = kActivations + kListed * sizeof(uint16_t);
  static_assert(kRing % 16 == 0 && kStageBytes % 16 == 0);
  static_assert(kFewestWarps * kStages * kStageBytes >= 32 * kMoeListBlocks,
                "the ring is what a list is made in");
  static size_t bytes(int32_t warps) { return kRing + size_t(warps) * kStages * kStageBytes; }
};

/// Blocks (i, p): some 128 rows each of one part, first those of the routed experts in the order of `entries`, so that what
/// tokens share is read at about one time. The part is listed once; then a warp has rows of its own and takes the listed
/// columns 16 at a time as the inner dimension of an mma, whose second operand is the activations and seven columns of zeros.
__global__ void __launch_bounds__(kMostThreads, 3) moe_down_gathered(const MoePlan plan) {
  __shared__ int32_t counts[kMoeListBlocks / 32];
  grid_dependency_launch();
  const MoeArgs& args = plan.args;
  const int32_t thread = int32_t(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int32_t g = lane / 4, t = lane % 4;
  uint8_t* const memory = dynamic_shared<uint8_t>();
  const List list = {reinterpret_cast<Listed*>(memory),
                     reinterpret_cast<uint16_t*>(memory + Memory::kActivations)};
  uint8_t* const ring = memory + Memory::kRing + warp * kStages * kStageBytes;
  const int32_t out = args.hidden;
  const int32_t chunks = (out + kColumnRows - 1) / kColumnRows;
  const int32_t chunk = int32_t(blockIdx.x * (blockDim.x / 32)) + warp;

  grid_dependency_wait();
  const uint32_t tokens = uint32_t(plan.step->tokens), top_k = uint32_t(args.top_k);
  const uint32_t routed_parts = uint32_t(args.tokens) * top_k * uint32_t(plan.routed_splits);
  const bool routed = blockIdx.y < routed_parts;
  const uint32_t splits = uint32_t(routed ? plan.routed_splits : plan.shared_splits);
  const uint32_t numbered = routed ? blockIdx.y : blockIdx.y - routed_parts;
  const uint32_t use = numbered / splits, split = numbered % splits;
  if (use >= (routed ? tokens * top_k : tokens)) return;
  const WeightView& weight = routed ? args.down : args.shared_down;
  uint32_t token = use, number = top_k * uint32_t(plan.routed_splits) + split;
  int32_t matrix = 0;
  float share = 1;
  const uint16_t* hidden = plan.shared + size_t(token) * size_t(plan.shared_stride);
  if (routed) {
    const uint32_t entry = uint32_t(__ldcg(plan.entries + use));
    token = entry / top_k;
    number = entry % top_k * splits + split;
    matrix = __ldcg(plan.chosen + entry);
    share = __ldcg(plan.weights + entry);
    hidden = plan.hidden + size_t(entry) * size_t(plan.width_stride);
  }
  const uint32_t blocks = uint32_t((weight.in + kBlockInputs - 1) / kBlockInputs);
  const uint32_t first = blocks * split / splits, last = blocks * (split + 1) / splits;
  const int32_t steps = list_steps(hidden + first * kBlockInputs, int32_t(last - first), out, list,
                                   reinterpret_cast<uint16_t*>(memory + Memory::kRing), counts);
  if (chunk >= chunks) return;

  const uint8_t* const data =
      weight.data + size_t(matrix) * weight.matrix_bytes + size_t(first) * column_block_bytes(out);
  const uint8_t* const codes = data + size_t(chunk) * 64 + size_t(t) * 16;
  const uint8_t* const scales =
      data + column_scales_offset(out) + size_t(chunk) * kColumnRows + size_t(t) * 16;
  const auto fetch = [&](int32_t step, int32_t stage) {
    if (step < steps) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int32_t column = g + i * 8;
        const Listed listed = list.columns[step * kStep + column];
        uint8_t* const to = ring + stage + kStep * kCodesStride + column * kScalesStride + t * 16;
        copy_async(ring + stage + column * kCodesStride + t * 16, codes + listed.codes);
        copy_async(to, scales + listed.scales);
        copy_async(to + 64, scales + listed.scales + 64);
      }
    }
    copy_async_commit();
  };
#pragma unroll 1
  for (int i = 0; i < kStages; ++i) fetch(i, i * kStageBytes);
  float sums[8][4] = {};
  int32_t stage = 0;
#pragma unroll 1
  for (int32_t step = 0; step < steps; ++step) {
    const uint32_t* const activations =
        reinterpret_cast<const uint32_t*>(list.activations + step * kStep) + t;
    const uint32_t b[2] = {g == 0 ? activations[0] : 0, g == 0 ? activations[4] : 0};
    copy_async_wait<kStages - 1>();
    __syncwarp();
    const Columns columns(ring + stage, g, t);
    add_panels<0>(columns, b, sums);
    add_panels<1>(columns, b, sums);
    add_panels<2>(columns, b, sums);
    add_panels<3>(columns, b, sums);
    __syncwarp();
    fetch(step + kStages, stage);
    stage = stage + kStageBytes == kStages * kStageBytes ? 0 : stage + kStageBytes;
  }
  copy_async_wait<0>();
  __syncwarp();

  // By way of shared memory, so that each lane writes neighbouring rows.
  float* const totals = reinterpret_cast<float*>(ring);
  if (t == 0) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      *reinterpret_cast<float2*>(totals + i * kPanelRows + 2 * g) = make_float2(sums[i][0], sums[i][2]);
    }
  }
  __syncwarp();
  float* const to = plan.outputs + (size_t(token) * size_t(plan.parts) + number) * size_t(out);
  const float* const bias = split != 0 ? nullptr : routed ? args.down_bias : args.shared_down_bias;
#pragma unroll 1
  for (int32_t i = lane; i < kColumnRows; i += 32) {
    const int32_t row = chunk * kColumnRows + i;
    if (row >= out) break;
    const size_t index = size_t(matrix) * size_t(out) + size_t(row);
    to[row] =
        (totals[i] * kHalfUnit * weight.row_scales[index] + (bias == nullptr ? 0.0f : bias[index])) * share;
  }
  __syncwarp();
  uint32_t* const arrivals = plan.arrivals + size_t(token) * size_t(chunks) + size_t(chunk);
  uint32_t before = 0;
  if (lane == 0) before = arrive_on(arrivals, 1);
  if (__shfl_sync(0xffffffffu, before, 0) + 1 != uint32_t(plan.parts)) return;
  if (lane == 0) *arrivals = 0;
#pragma unroll 1
  for (int32_t i = lane; i < kColumnRows; i += 32)
    moe_combine_row(plan, size_t(token), chunk * kColumnRows + i);
}

}  // namespace

cudaError_t moe_down_gather(const MoePlan& plan, const CudaTarget& target) {
  const MoeArgs& args = plan.args;
  const auto blocks = [](int32_t in, int32_t splits) {
    return ((in + kBlockInputs - 1) / kBlockInputs + splits - 1) / splits;
  };
  if (blocks(args.down.in, plan.routed_splits) > kMoeListBlocks) return cudaErrorInvalidValue;
  if (plan.has_shared() && blocks(args.shared_down.in, plan.shared_splits) > kMoeListBlocks) {
    return cudaErrorInvalidValue;
  }
  const int32_t chunks = round_up(args.hidden, kColumnRows) / kColumnRows;
  const int32_t groups = (chunks + kMostWarps - 1) / kMostWarps;
  const int32_t needed = (chunks + groups - 1) / groups,
                warps = needed < kFewestWarps ? kFewestWarps : needed;
  const size_t shared_bytes = Memory::bytes(warps);
  const cudaError_t error = allow_shared_memory(moe_down_gathered, shared_bytes);
  if (error != cudaSuccess) return error;
  return launch(
      target,
      {dim3(unsigned(groups), unsigned(plan.parts * args.tokens)), unsigned(32 * warps), shared_bytes},
      moe_down_gathered, plan);
}

}  // namespace nibblet
