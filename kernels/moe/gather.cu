#include "kernels/moe/live.cuh"

namespace nibblet {
namespace {

using namespace live;

/// Most warps of a block, which all have the same columns and 128 rows each.
constexpr int kMostWarps = 7;
constexpr int kMostThreads = 32 * kMostWarps;
/// Live columns that are multiplied at once: what one mma takes.
constexpr int kStep = 16;
/// Steps whose columns are on their way or in use.
constexpr int kStages = 2;
/// Bytes from one column to the next in shared memory, of codes and of block scales: neighbours lie in other banks.
constexpr int kCodesStride = 64 + 16;
constexpr int kScalesStride = kColumnRows + 16;
constexpr int kStageBytes = kStep * (kCodesStride + kScalesStride);
/// Columns that a list has room for.
constexpr int kListed = kListBlocks * kBlockInputs + kStep;
/// 2⁶⁰ twice in bf16.
constexpr uint32_t kHalfUnits = 0x5d805d80u;

/// The step's columns of a lane in shared memory: 2t, 2t + 1, 2t + 8 and 2t + 9, of which it has words 2g and 2g + 1. So rows
/// g and g + 8 of an mma's first operand are rows 2g and 2g + 1 of a panel.
struct Columns {
  uint2 codes[4];
  const uint8_t* scales;

  __device__ Columns(const uint8_t* stage, int32_t g, int32_t t)
      : scales(stage + kStep * kCodesStride + 2 * t * kScalesStride + 2 * g) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      codes[i] = *reinterpret_cast<const uint2*>(stage + of_lane(i, t) * kCodesStride + 8 * g);
    }
  }
  static __device__ int32_t of_lane(int i, int32_t t) { return 2 * t + i % 2 + i / 2 * 8; }

  /// Scales of rows 2g and 2g + 1 of a panel, of columns 2i and 2i + 1 of the four.
  __device__ uint32_t scale_bytes(int panel, int i) const {
    const uint8_t* from = scales + i * 8 * kScalesStride + panel * kPanelRows;
    const uint32_t first = *reinterpret_cast<const uint16_t*>(from);
    const uint32_t second = *reinterpret_cast<const uint16_t*>(from + kScalesStride);
    return __byte_perm(first, second, 0x5410);
  }
};

/// Adds panels n and n + 4 of a step's columns, times W · 2⁻¹²⁰.
template <int n>
__device__ __forceinline__ void add_panels(const Columns& columns, const uint32_t (&b)[2],
                                           float (&sums)[8][4]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const unsigned halves = half == 0 ? 0x5410 : 0x7632;
    uint32_t a[4];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint32_t bytes = columns.scale_bytes(n + half * 4, i);
      const uint32_t scales[2] = {multiply_bf16x2(bytes << 4 & 0x07f007f0u, columns::kScaleUnit),
                                  multiply_bf16x2(bytes >> 4 & 0x07f007f0u, columns::kScaleUnit)};
      const uint2 first = columns.codes[2 * i], second = columns.codes[2 * i + 1];
      a[2 * i] = multiply_bf16x2(columns::decode<n>(__byte_perm(first.x, second.x, halves)), scales[0]);
      a[2 * i + 1] = multiply_bf16x2(columns::decode<n>(__byte_perm(first.y, second.y, halves)), scales[1]);
    }
    mma_bf16(sums[n + half * 4], a[0], a[1], a[2], a[3], b[0], b[1]);
  }
}

/// Blocks (i, p): some 128 rows each of one part, first those of the routed experts in the order of `entries`, so that what
/// tokens share is read at about one time. The part is listed once; then a warp has rows of its own and takes the listed
/// columns 16 at a time as the inner dimension of an mma, whose second operand is the activations and seven columns of zeros.
__global__ void __launch_bounds__(kMostThreads, 3) moe_down_gathered(const MoePlan plan) {
  __shared__ int32_t counts[kMostWarps];
  __shared__ uint32_t alive[kMostWarps];
  grid_dependency_launch();
  const MoeArgs& args = plan.args;
  const int32_t thread = int32_t(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int32_t g = lane / 4, t = lane % 4;
  uint32_t* const list = dynamic_shared<uint32_t>();
  uint8_t* const ring = reinterpret_cast<uint8_t*>(list + kListed) + warp * kStages * kStageBytes;
  const int32_t out = args.hidden;
  const int32_t chunks = (out + kColumnRows - 1) / kColumnRows;
  const int32_t chunk = int32_t(blockIdx.x) * (int32_t(blockDim.x) / 32) + warp;
  const int32_t routed_parts = args.tokens * args.top_k * plan.routed_splits;

  grid_dependency_wait();
  const int32_t tokens = plan.step->tokens;
  int32_t token, number;
  if (int32_t(blockIdx.y) < routed_parts) {
    const int32_t i = int32_t(blockIdx.y) / plan.routed_splits;
    if (i >= tokens * args.top_k) return;
    const int32_t entry = __ldcg(plan.entries + i);
    token = entry / args.top_k;
    number = entry % args.top_k * plan.routed_splits + int32_t(blockIdx.y) % plan.routed_splits;
  } else {
    const int32_t i = int32_t(blockIdx.y) - routed_parts;
    token = i / plan.shared_splits;
    if (token >= tokens) return;
    number = args.top_k * plan.routed_splits + i % plan.shared_splits;
  }
  const Part part(plan, size_t(token), number);
  uint32_t pairs[8];
  read_activations(part.hidden + part.first * kBlockInputs, part.last - part.first, pairs);
  int32_t matrix = 0;
  float share = 1;
  if (part.routed) {
    matrix = __ldcg(plan.chosen + part.entry);
    share = __ldcg(plan.weights + part.entry);
  }
  const int32_t total = list_columns(pairs, list, counts, alive);
  const int32_t steps = (total + kStep - 1) / kStep;
  if (total + thread < steps * kStep) list[total + thread] = 0;
  __syncthreads();
  if (chunk >= chunks) return;

  const uint8_t* const data = part.weight.data + size_t(matrix) * part.weight.matrix_bytes +
                              size_t(part.first) * column_block_bytes(out);
  const uint8_t* const codes = data + size_t(chunk) * 64 + size_t(t) * 16;
  const uint8_t* const scales =
      data + column_scales_offset(out) + size_t(chunk) * kColumnRows + size_t(t) * 16;
  const uint32_t column_size = uint32_t(column_bytes(out)), block_size = uint32_t(column_block_bytes(out));
  const auto fetch = [&](int32_t step) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (step >= steps) break;
      uint8_t* const to = ring + step % kStages * kStageBytes;
      const int32_t column = g + i * 8;
      const uint32_t listed = list[step * kStep + column];
      const uint32_t block = (listed >> 4 & 0xfff) * block_size;
      copy_async(to + column * kCodesStride + t * 16, codes + block + (listed & 15) * column_size);
      uint8_t* const scales_to = to + kStep * kCodesStride + column * kScalesStride + t * 16;
      copy_async(scales_to, scales + block);
      copy_async(scales_to + 64, scales + block + 64);
    }
    copy_async_commit();
  };
#pragma unroll
  for (int i = 0; i < kStages; ++i) fetch(i);
  float sums[8][4] = {};
#pragma unroll 1
  for (int32_t step = 0; step < steps; ++step) {
    const auto activations = [&](int32_t i) {
      const uint2 two = *reinterpret_cast<const uint2*>(list + step * kStep + 2 * t + 8 * i);
      return g == 0 ? multiply_bf16x2(__byte_perm(two.x, two.y, 0x7632), kHalfUnits) : 0;
    };
    const uint32_t b[2] = {activations(0), activations(1)};
    copy_async_wait<kStages - 1>();
    __syncwarp();
    const Columns columns(ring + step % kStages * kStageBytes, g, t);
    add_panels<0>(columns, b, sums);
    add_panels<1>(columns, b, sums);
    add_panels<2>(columns, b, sums);
    add_panels<3>(columns, b, sums);
    __syncwarp();
    fetch(step + kStages);
  }

  if (t == 0) {
    const size_t first = (size_t(token) * size_t(plan.parts) + size_t(number)) * size_t(out);
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const int32_t row = chunk * kColumnRows + i / 2 * kPanelRows + 2 * g + i % 2;
      if (row >= out) continue;
      const size_t index = size_t(matrix) * size_t(out) + size_t(row);
      const float bias = part.bias == nullptr ? 0.0f : part.bias[index];
      plan.outputs[first + size_t(row)] =
          (sums[i / 2][i % 2 * 2] * kHalfUnit * part.weight.row_scales[index] + bias) * share;
    }
  }
  if (!is_last_part(plan, plan.arrivals + size_t(token) * size_t(chunks) + size_t(chunk))) return;
#pragma unroll
  for (int i = 0; i < kColumnRows; i += 32) {
    combine(plan, size_t(token), chunk * kColumnRows + i + lane);
  }
}

}  // namespace

cudaError_t moe_down_gather(const MoePlan& plan, const CudaTarget& target) {
  const MoeArgs& args = plan.args;
  const auto blocks = [](int32_t in, int32_t splits) {
    return ((in + kBlockInputs - 1) / kBlockInputs + splits - 1) / splits;
  };
  if (blocks(args.down.in, plan.routed_splits) > kListBlocks) return cudaErrorInvalidValue;
  if (plan.has_shared() && blocks(args.shared_down.in, plan.shared_splits) > kListBlocks) {
    return cudaErrorInvalidValue;
  }
  const int32_t chunks = round_up(args.hidden, kColumnRows) / kColumnRows;
  const int32_t groups = (chunks + kMostWarps - 1) / kMostWarps;
  // A thread for each block of inputs that is listed.
  const int32_t needed = (chunks + groups - 1) / groups, warps = needed < kWarps ? kWarps : needed;
  const size_t shared_bytes = kListed * 4 + size_t(warps) * kStages * kStageBytes;
  const cudaError_t error = allow_shared_memory(moe_down_gathered, shared_bytes);
  if (error != cudaSuccess) return error;
  return launch(
      target,
      {dim3(unsigned(groups), unsigned(plan.parts * args.tokens)), unsigned(32 * warps), shared_bytes},
      moe_down_gathered, plan);
}

}  // namespace nibblet
