#include "kernels/cuda/device.h"
#include "kernels/moe/columns.cuh"
#include "kernels/moe/plan.h"
#include "kernels/numerics/bf16.h"
#include "kernels/pack/layout.h"

namespace nibblet {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;
/// Four lanes hold the 128 rows of a piece of a column: 32 each.
constexpr int kGroups = kThreads / 4;
/// Blocks of 16 inputs whose live columns are listed at a time, one a thread.
constexpr int kListBlocks = kThreads;
static_assert(kThreads == kColumnRows);
/// Columns that a group has under way.
constexpr int kColumns = 4;
/// Weights come out as W · 2⁻¹²⁰; activations are multiplied by 2⁶⁰, sums at the end by as much.
constexpr float kHalfUnit = 0x1p60f;

/// Which matrix a block multiplies with which activations.
struct Part {
  WeightView weight;
  const uint16_t* hidden;
  const float* bias;  ///< null too where another part of the same product adds it
  bool routed;
  size_t entry;   ///< of a routed part
  int32_t first;  ///< blocks of 16 inputs
  int32_t last;

  __device__ Part(const MoePlan& plan, size_t token, int32_t part) {
    const MoeArgs& args = plan.args;
    const int32_t routed_parts = args.top_k * plan.routed_splits;
    int32_t split, splits;
    routed = part < routed_parts;
    if (routed) {
      entry = token * size_t(args.top_k) + size_t(part / plan.routed_splits);
      split = part % plan.routed_splits;
      splits = plan.routed_splits;
      weight = args.down;
      hidden = plan.hidden + entry * size_t(plan.width_stride);
      bias = args.down_bias;
    } else {
      entry = 0;
      split = part - routed_parts;
      splits = plan.shared_splits;
      weight = args.shared_down;
      hidden = plan.shared + token * size_t(plan.shared_stride);
      bias = args.shared_down_bias;
    }
    const int32_t blocks = (weight.in + kBlockInputs - 1) / kBlockInputs;
    first = blocks * split / splits;
    last = blocks * (split + 1) / splits;
    if (split != 0) bias = nullptr;
  }
};

/// Reads a thread's 16 activations of up to kListBlocks blocks.
__device__ void read_activations(const uint16_t* hidden, int32_t blocks, uint32_t (&pairs)[8]) {
  uint4 low = make_uint4(0, 0, 0, 0), high = low;
  if (int32_t(threadIdx.x) < blocks) {
    const uint4* from = reinterpret_cast<const uint4*>(hidden) + threadIdx.x * 2;
    low = __ldcg(from);
    high = __ldcg(from + 1);
  }
  pairs[0] = low.x, pairs[1] = low.y, pairs[2] = low.z, pairs[3] = low.w;
  pairs[4] = high.x, pairs[5] = high.y, pairs[6] = high.z, pairs[7] = high.w;
}

/// Lists the columns that an activation multiplies: the activation in the high half, the column's number in the low half.
/// @return how many there are
__device__ int32_t list_columns(const uint32_t (&pairs)[8], uint32_t* list, int32_t* sums) {
  const int32_t thread = int32_t(threadIdx.x), warp = thread / 32, lane = thread % 32;
  uint32_t live = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    live |= uint32_t((pairs[i] & 0x7fffu) != 0) << (2 * i) | uint32_t((pairs[i] & 0x7fff0000u) != 0)
                                                                 << (2 * i + 1);
  }
  const int32_t count = __popc(live);
  int32_t place = count;
  for (int distance = 1; distance < 32; distance *= 2) {
    const int32_t before = __shfl_up_sync(0xffffffffu, place, unsigned(distance));
    if (lane >= distance) place += before;
  }
  if (lane == 31) sums[warp] = place;
  __syncthreads();
  place -= count;
  int32_t total = 0;
  for (int w = 0; w < kListBlocks / 32; ++w) {
    if (w < warp) place += sums[w];
    total += sums[w];
  }
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    const uint32_t activation = i % 2 == 0 ? pairs[i / 2] << 16 : pairs[i / 2] & 0xffff0000u;
    if (live >> i & 1) list[place++] = activation | uint32_t(thread * 16 + i);
  }
  __syncthreads();
  return total;
}

/// What a lane reads of one column: the codes of rows 16 n + r of 4 neighbouring r, and their block scales.
struct Column {
  uint4 codes;
  uint32_t scales[8];
  float activation;
};

__device__ float low_half(uint32_t pair) { return __uint_as_float(pair << 16); }
__device__ float high_half(uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); }

template <int n>
__device__ void add_rows(const Column& column, float (&sums)[32]) {
  const uint32_t words[4] = {column.codes.x, column.codes.y, column.codes.z, column.codes.w};
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const uint32_t bytes =
        __byte_perm(column.scales[n], column.scales[n + 4], unsigned(j * 0x11 + (j + 4) * 0x1100));
    const uint32_t scale = multiply_bf16x2(columns::scale_pair(bytes), columns::kScaleUnit);
    const uint32_t weight = multiply_bf16x2(columns::decode<n>(words[j]), scale);
    sums[n * 4 + j] = fmaf(low_half(weight), column.activation, sums[n * 4 + j]);
    sums[n * 4 + 16 + j] = fmaf(high_half(weight), column.activation, sums[n * 4 + 16 + j]);
  }
}

/// Adds up the groups' sums of a warp. Lane 4 g + q ends with rows 16 g + 4 q + j, j < 4, in sums[j].
template <int half = 16>
__device__ void add_groups(float (&sums)[32]) {
  const bool upper = (threadIdx.x & unsigned(half)) != 0;
#pragma unroll
  for (int i = 0; i < half; ++i) {
    const float away = upper ? sums[i] : sums[i + half];
    const float kept = upper ? sums[i + half] : sums[i];
    sums[i] = kept + __shfl_xor_sync(0xffffffffu, away, half);
  }
  if constexpr (half > 4) add_groups<half / 2>(sums);
}

/// Adds the parts of 32 rows of a token, one a lane, to x when the warp is the last of those that made them.
__device__ void combine(const MoePlan& plan, size_t token, int32_t row, uint32_t* arrivals) {
  __threadfence();
  __syncwarp();
  uint32_t before = 0;
  if (threadIdx.x % 32 == 0) before = atomicAdd(arrivals, 1u);
  before = __shfl_sync(0xffffffffu, before, 0);
  if (before != uint32_t(plan.parts) - 1) return;
  __threadfence();
  if (threadIdx.x % 32 == 0) *arrivals = 0;
  const size_t hidden = size_t(plan.args.hidden);
  if (row >= plan.args.hidden) return;
  const float* from = plan.outputs + token * size_t(plan.parts) * hidden + size_t(row);
  float sum = 0;
#pragma unroll 8
  for (int32_t part = 0; part < plan.parts; ++part) sum += __ldcg(from + size_t(part) * hidden);
  plan.args.x[token * hidden + size_t(row)] += sum;
}

/// Blocks (c, p, t): rows from 128 c on of part p of token t. Of a token that is not there no more is known than where its
/// activations would be: it has no live columns, and matrix 0.
__global__ void __launch_bounds__(kThreads, 4) moe_down_columns(const MoePlan plan) {
  __shared__ uint32_t list[kListBlocks * 16];
  __shared__ float totals[kWarps][kColumnRows];
  __shared__ int32_t counts[kWarps];
  const int32_t thread = int32_t(threadIdx.x), group = thread / 4, quarter = thread % 4;
  const int32_t out = plan.args.hidden;
  const int32_t row = int32_t(blockIdx.x) * kColumnRows + thread;
  const size_t token = blockIdx.z;
  const Part part(plan, token, int32_t(blockIdx.y));
  const auto constants = [&](size_t matrix, float& scale, float& bias) {
    const size_t index = matrix * size_t(out) + size_t(row);
    if (row < out) scale = part.weight.row_scales[index];
    if (row < out && part.bias != nullptr) bias = part.bias[index];
  };
  float scale = 0, bias = 0, share = 1;
  int32_t matrix = 0;
  if (!part.routed) constants(0, scale, bias);

  grid_dependency_wait();
  const bool exists = int32_t(token) < plan.step->tokens;
  if (part.routed) {
    matrix = __ldcg(plan.chosen + part.entry);
    share = __ldcg(plan.weights + part.entry);
  }
  uint32_t pairs[8];
  read_activations(part.hidden + part.first * kBlockInputs, part.last - part.first, pairs);
  if (!exists) matrix = 0;
  if (part.routed) constants(size_t(matrix), scale, bias);
  const uint8_t* data = part.weight.data + size_t(matrix) * part.weight.matrix_bytes;
  const size_t codes = size_t(blockIdx.x) * 64 + size_t(quarter) * 16;
  const size_t scales = column_scales_offset(out) + size_t(blockIdx.x) * kColumnRows + size_t(quarter) * 4;
  const uint64_t policy = evict_first_policy();

  float sums[32] = {};
  for (int32_t start = part.first; exists && start < part.last; start += kListBlocks) {
    if (start != part.first) {
      read_activations(part.hidden + start * kBlockInputs, part.last - start, pairs);
    }
    const int32_t total = list_columns(pairs, list, counts);
    const uint8_t* from = data + size_t(start) * column_block_bytes(out);
    for (int32_t i = group; i < total; i += kColumns * kGroups) {
      Column piece[kColumns];
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        piece[c] = {};
        if (i + c * kGroups >= total) continue;
        const uint32_t listed = list[i + c * kGroups];
        const uint8_t* block = from + (listed >> 4 & 0xfff) * column_block_bytes(out);
        piece[c].activation = high_half(listed) * kHalfUnit;
        piece[c].codes = load_stream(block + (listed & 15) * column_bytes(out) + codes, policy);
#pragma unroll
        for (int n = 0; n < 8; ++n) {
          piece[c].scales[n] = __ldg(reinterpret_cast<const uint32_t*>(block + scales + n * kPanelRows));
        }
      }
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        if (i + c * kGroups >= total) continue;
        add_rows<0>(piece[c], sums);
        add_rows<1>(piece[c], sums);
        add_rows<2>(piece[c], sums);
        add_rows<3>(piece[c], sums);
      }
    }
    __syncthreads();
  }

  // Not before: what the next kernels fetch ahead would stand in the way of these few scattered bytes.
  grid_dependency_launch();
  add_groups(sums);
  *reinterpret_cast<float4*>(&totals[thread / 32][thread % 32 * 4]) =
      make_float4(sums[0], sums[1], sums[2], sums[3]);
  __syncthreads();
  if (!exists) return;
  float sum = 0;
  for (int w = 0; w < kWarps; ++w) sum += totals[w][thread];
  if (row < out) {
    plan.outputs[(token * size_t(plan.parts) + blockIdx.y) * size_t(out) + size_t(row)] =
        (sum * kHalfUnit * scale + bias) * share;
  }
  const size_t rows = token * gridDim.x + blockIdx.x;
  combine(plan, token, row, plan.arrivals + rows * (kColumnRows / 32) + size_t(thread / 32));
}

}  // namespace

cudaError_t moe_down_skip(const MoePlan& plan, const CudaTarget& target) {
  const unsigned chunks = unsigned(round_up(plan.args.hidden, kColumnRows) / kColumnRows);
  return launch(target, {{chunks, unsigned(plan.parts), unsigned(plan.args.tokens)}, kThreads},
                moe_down_columns, plan);
}

}  // namespace nibblet
