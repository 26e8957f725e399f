#include "kernels/cuda/device.h"
#include "kernels/moe/combine.cuh"
#include "kernels/moe/live.cuh"
#include "kernels/moe/plan.h"

/// `down` of several tokens. Each is summed for itself, so that its sums do not depend on the others; the cache holds what
/// tokens share.

namespace nibblet {
namespace {

using moe_live::kStepBlocks;
using moe_live::kStepColumns;
using moe_live::List;
using moe_live::ListStep;

/// Most warps of a block, which all have the same columns and 128 rows each.
constexpr int kMostWarps = 7;
constexpr int kMostThreads = 32 * kMostWarps;
/// Fewest: a thread for each block of inputs that is listed.
constexpr int kFewestWarps = kMoeListBlocks / 32;
/// Blocks of an SM. With four, and stages for two steps, 32 tokens take longer and 64 as long.
constexpr int kBlocks = 3;
/// Steps whose columns are on their way or in use.
constexpr int kStages = 3;
constexpr int kPanels = kColumnRows / kPanelRows;
/// Bytes from one column to the next in shared memory, and from the scales of one block to the next: neighbours lie in other
/// banks.
constexpr int kCodesStride = 64 + 16;
constexpr int kScalesStride = kColumnRows + 16;
constexpr int kScalesOffset = kStepColumns * kCodesStride;
constexpr int kStageBytes = kScalesOffset + kStepBlocks * kScalesStride;
constexpr int kRingBytes = kStages * kStageBytes;
/// Floats from the sums of one of the four lanes that share a row to the next's.
constexpr int kSumsStride = kColumnRows + 8;
static_assert(kRingBytes >= int(4 * kSumsStride * sizeof(float)),
              "the ring is where lanes add their sums up");
static_assert(kFewestWarps * kRingBytes >= 32 * kMoeListBlocks, "the ring is what a list is made in");
/// What makes up for codes times 2⁻¹²⁶, scales times 2⁻⁸ and activations times 2⁶⁰.
constexpr float kUnit = 0x1p74f;

/// The step's columns of a lane in shared memory: 2t, 2t + 1, 2t + 8 and 2t + 9, of which it has words 2g and 2g + 1. So rows
/// g and g + 8 of an mma's first operand are rows 2g and 2g + 1 of a panel.
struct Codes {
  uint2 columns[4];

  __device__ Codes(const uint8_t* stage, int32_t g, int32_t t) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int32_t column = 2 * t + i % 2 + i / 2 * 8;
      columns[i] = *reinterpret_cast<const uint2*>(stage + column * kCodesStride + 8 * g);
    }
  }
};

/// A lane's part of the second operand: activations, each in the column of its block.
struct Activations {
  uint32_t pairs[2];

  __device__ Activations(const List& list, const ListStep& step, int32_t g, int32_t t) {
    const moe_live::Column* columns = list.columns + step.first + 2 * t;
    const auto own = [&](int32_t i) {
      const uint32_t use = columns[i].use;
      return (use & 0xffff) == uint32_t(step.block + g) ? use : 0;
    };
    pairs[0] = __byte_perm(own(0), own(1), 0x7632);
    pairs[1] = __byte_perm(own(8), own(9), 0x7632);
  }
};

/// A pair of codes as bf16 times 2⁻¹²⁶: the lower or the upper nibbles of pairs of equal bytes. All shifts go left, which is
/// what the multiplier can do too.
template <bool upper>
__device__ __forceinline__ uint32_t decode_nibble(uint32_t bytes) {
  const uint32_t sign = upper ? bytes : bytes << 4;
  return (sign & 0x80008000u) | ((upper ? bytes << 2 : bytes << 6) & 0x01c001c0u);
}

/// Adds panels 2n and 2n + 1 of a step's columns, times W · 2⁻¹³⁴. A product has the blocks of its inputs apart, so that their
/// scales can come after it.
/// @param scales  of these panels: rows 2g and 2g + 1 of block 2t, then of block 2t + 1
template <int n>
__device__ __forceinline__ void add_panels(const Codes& codes, const Activations& activations,
                                           const uint32_t (&scales)[4], float (&sums)[kPanels][2]) {
  constexpr unsigned kBytes = 0x4400u + 0x1111u * n;
  uint32_t bytes[4];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint2 first = codes.columns[2 * i], second = codes.columns[2 * i + 1];
    bytes[2 * i] = __byte_perm(first.x, second.x, kBytes);
    bytes[2 * i + 1] = __byte_perm(first.y, second.y, kBytes);
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    uint32_t a[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      a[i] = half == 0 ? decode_nibble<false>(bytes[i]) : decode_nibble<true>(bytes[i]);
    }
    float products[4];
    mma_bf16_product(products, a[0], a[1], a[2], a[3], activations.pairs[0], activations.pairs[1]);
    // The bits of an e4m3 number, shifted, are a float16 of the same value times 2⁻⁸. What no copy has written is masked to a
    // number, since it meets products of zero.
    const uint32_t bits = scales[(2 * n + half) % 4];
    const float2 upper = floats_of_f16_pair((bits & 0x007f007fu) << 7);
    const float2 lower = floats_of_f16_pair((bits & 0x7f007f00u) >> 1);
    float (&sum)[2] = sums[2 * n + half];
    sum[0] = fmaf(products[1], upper.y, fmaf(products[0], upper.x, sum[0]));
    sum[1] = fmaf(products[3], lower.y, fmaf(products[2], lower.x, sum[1]));
  }
}

/// Which product a block works on: a routed expert's or the shared one's, of one token, or a part of it.
struct Part {
  const WeightView& weight;
  const uint16_t* hidden;
  const float* bias;  ///< null too where another part of the same product adds it
  uint32_t token;
  uint32_t number;  ///< among the token's parts
  int32_t matrix;
  float share;
  uint32_t first, last;  ///< blocks of 16 inputs

  __device__ Part(const MoePlan& plan, bool routed, uint32_t use, uint32_t split, uint32_t splits)
      : weight(routed ? plan.args.down : plan.args.shared_down), matrix(0), share(1) {
    const MoeArgs& args = plan.args;
    const uint32_t top_k = uint32_t(args.top_k);
    if (routed) {
      const uint32_t entry = uint32_t(__ldcg(plan.entries + use));
      token = entry / top_k;
      number = entry % top_k * splits + split;
      matrix = __ldcg(plan.chosen + entry);
      share = __ldcg(plan.weights + entry);
      hidden = plan.hidden + size_t(entry) * size_t(plan.width_stride);
    } else {
      token = use;
      number = top_k * uint32_t(plan.routed_splits) + split;
      hidden = plan.shared + size_t(token) * size_t(plan.shared_stride);
    }
    bias = split != 0 ? nullptr : routed ? args.down_bias : args.shared_down_bias;
    const uint32_t blocks = uint32_t((weight.in + kBlockInputs - 1) / kBlockInputs);
    first = blocks * split / splits;
    last = blocks * (split + 1) / splits;
  }
};

/// Blocks (i, p): some 128 rows each of one part, first those of the routed experts in the order of `entries`, so that what
/// tokens share is read at about one time. The part is listed once; then a warp has rows of its own and takes the listed
/// columns 16 at a time as the inner dimension of an mma, whose second operand has a column for each block that they are of.
__global__ void __launch_bounds__(kMostThreads, kBlocks) moe_down_gathered(const MoePlan plan) {
  __shared__ int32_t counts[kMoeListBlocks / 32];
  grid_dependency_launch();
  const MoeArgs& args = plan.args;
  const int32_t thread = int32_t(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int32_t g = lane / 4, t = lane % 4;
  uint8_t* const memory = dynamic_shared<uint8_t>();
  uint8_t* const ring = memory + List::kBytes + warp * kRingBytes;
  List list(memory);
  const int32_t out = args.hidden;
  const int32_t chunks = (out + kColumnRows - 1) / kColumnRows;
  const int32_t chunk = int32_t(blockIdx.x * (blockDim.x / 32)) + warp;

  grid_dependency_wait();
  const uint32_t tokens = uint32_t(plan.step->tokens), top_k = uint32_t(args.top_k);
  const uint32_t routed_parts = uint32_t(args.tokens) * top_k * uint32_t(plan.routed_splits);
  const bool routed = blockIdx.y < routed_parts;
  const uint32_t splits = uint32_t(routed ? plan.routed_splits : plan.shared_splits);
  const uint32_t numbered = routed ? blockIdx.y : blockIdx.y - routed_parts;
  const uint32_t use = numbered / splits;
  if (use >= (routed ? tokens * top_k : tokens)) return;
  const Part part(plan, routed, use, numbered % splits, splits);
  list.make<kMostThreads>(part.hidden + part.first * kBlockInputs, int32_t(part.last - part.first), out,
                          reinterpret_cast<uint16_t*>(memory + List::kBytes), counts);
  if (chunk >= chunks) return;

  const uint8_t* const data = part.weight.data + size_t(part.matrix) * part.weight.matrix_bytes +
                              size_t(part.first) * column_block_bytes(out);
  const uint8_t* const codes = data + size_t(chunk) * 64 + size_t(t) * 16;
  const uint8_t* const scales =
      data + column_scales_offset(out) + size_t(chunk) * kColumnRows + size_t(t) * 16;
  const auto fetch = [&](const ListStep& step, uint8_t* stage) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int32_t column = g + i * 8;
      if (step.first + column < step.end) {
        copy_async(stage + column * kCodesStride + t * 16, codes + list.columns[step.first + column].start);
      }
    }
    if (step.first < step.end && list.blocks[step.block + g].first < step.end) {
      const uint8_t* const from = scales + list.blocks[step.block + g].start;
      uint8_t* const to = stage + kScalesOffset + g * kScalesStride + t * 16;
      copy_async(to, from);
      copy_async(to + 64, from + 64);
    }
    copy_async_commit();
  };
  ListStep step(list, 0), ahead = step;
#pragma unroll 1
  for (int i = 0; i < kStages; ++i) {
    fetch(ahead, ring + i * kStageBytes);
    ahead = ListStep(list, ahead.end);
  }
  float sums[kPanels][2] = {};
  uint8_t* stage = ring;
#pragma unroll 1
  while (step.first < step.end) {
    const Activations activations(list, step, g, t);
    step = ListStep(list, step.end);
    copy_async_wait<kStages - 1>();
    __syncwarp();
    const Codes own(stage, g, t);
    uint32_t first[4], second[4];
    const uint8_t* const row = stage + kScalesOffset + lane % 8 * kScalesStride + lane / 8 * kPanelRows;
    load_transposed(first, row);
    load_transposed(second, row + 4 * kPanelRows);
    add_panels<0>(own, activations, first, sums);
    add_panels<1>(own, activations, first, sums);
    add_panels<2>(own, activations, second, sums);
    add_panels<3>(own, activations, second, sums);
    __syncwarp();
    fetch(ahead, stage);
    ahead = ListStep(list, ahead.end);
    stage = stage == ring + kRingBytes - kStageBytes ? ring : stage + kStageBytes;
  }
  copy_async_wait<0>();
  __syncwarp();

  // By way of shared memory, where the four lanes of a row add up and each lane has neighbouring rows.
  float* const totals = reinterpret_cast<float*>(ring);
#pragma unroll
  for (int i = 0; i < kPanels; ++i) {
    *reinterpret_cast<float2*>(totals + t * kSumsStride + i * kPanelRows + 2 * g) =
        make_float2(sums[i][0], sums[i][1]);
  }
  __syncwarp();
  float* const to = plan.outputs + (size_t(part.token) * size_t(plan.parts) + part.number) * size_t(out);
#pragma unroll 1
  for (int32_t i = lane; i < kColumnRows; i += 32) {
    const int32_t row = chunk * kColumnRows + i;
    if (row >= out) break;
    const size_t index = size_t(part.matrix) * size_t(out) + size_t(row);
    const float total =
        totals[i] + totals[kSumsStride + i] + totals[2 * kSumsStride + i] + totals[3 * kSumsStride + i];
    const float bias = part.bias == nullptr ? 0.0f : part.bias[index];
    to[row] = (total * kUnit * part.weight.row_scales[index] + bias) * part.share;
  }
  __syncwarp();
  uint32_t* const arrivals = plan.arrivals + size_t(part.token) * size_t(chunks) + size_t(chunk);
  uint32_t before = 0;
  if (lane == 0) before = arrive_on(arrivals, 1);
  if (__shfl_sync(0xffffffffu, before, 0) + 1 != uint32_t(plan.parts)) return;
  if (lane == 0) *arrivals = 0;
#pragma unroll 1
  for (int32_t i = lane; i < kColumnRows; i += 32)
    moe_combine_row(plan, size_t(part.token), chunk * kColumnRows + i);
}

}  // namespace

cudaError_t moe_down_gather(const MoePlan& plan, const CudaTarget& target) {
  const MoeArgs& args = plan.args;
  const auto listed = [](int32_t in, int32_t splits) {
    return ((in + kBlockInputs - 1) / kBlockInputs + splits - 1) / splits;
  };
  if (listed(args.down.in, plan.routed_splits) > kMoeListBlocks) return cudaErrorInvalidValue;
  if (plan.has_shared() && listed(args.shared_down.in, plan.shared_splits) > kMoeListBlocks) {
    return cudaErrorInvalidValue;
  }
  const int32_t chunks = round_up(args.hidden, kColumnRows) / kColumnRows;
  const int32_t groups = (chunks + kMostWarps - 1) / kMostWarps;
  const int32_t needed = (chunks + groups - 1) / groups,
                warps = needed < kFewestWarps ? kFewestWarps : needed;
  const size_t shared_bytes = List::kBytes + size_t(warps) * kRingBytes;
  const cudaError_t error = allow_shared_memory(moe_down_gathered, shared_bytes);
  if (error != cudaSuccess) return error;
  return launch(
      target,
      {dim3(unsigned(groups), unsigned(plan.parts * args.tokens)), unsigned(32 * warps), shared_bytes},
      moe_down_gathered, plan);
}

}  // namespace nibblet
