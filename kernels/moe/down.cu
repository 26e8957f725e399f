#include "kernels/moe/down.cuh"
#include "kernels/moe/nonzero.cuh"
#include "kernels/numerics/bf16.h"

/// `down` of one token. Each step runs this code once a layer, after other kernels have pushed it out of the instruction
/// cache: it is as short as can be, as what is unrolled here is paid for line by line, not saved.
namespace nibblet {
namespace {

using namespace moe_down_one;
using columns::kHalfUnit;

/// A column on its way, and what keeps those of neighbouring groups off the same banks.
struct Place {
  uint4 codes[4];
  uint4 scales[8];
  uint4 unused;
};

/// Lists the columns that a nonzero activation multiplies, in order. All threads; those that follow see the list.
/// @param activations  the thread's 16
/// @return how many there are
__device__ int32_t list_live(const uint4 (&activations)[2], uint16_t* list, int32_t* counts) {
  const uint32_t words[8] = {activations[0].x, activations[0].y, activations[0].z, activations[0].w,
                             activations[1].x, activations[1].y, activations[1].z, activations[1].w};
  uint32_t live = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    if ((words[i] & 0x7fffu) != 0) live |= 1u << (2 * i);
    if ((words[i] & 0x7fff0000u) != 0) live |= 2u << (2 * i);
  }
  MoeListPlace place = moe_list_place<kThreads>(__popc(live), counts);
#pragma unroll 1
  for (; live != 0; live &= live - 1) {
    list[place.first++] = uint16_t(int32_t(threadIdx.x) * kBlockInputs + __ffs(int(live)) - 1);
  }
  __syncthreads();
  return place.total;
}

/// Adds the parts of one row to what x held. The loads are all under way before the first sum.
__device__ void add_parts(const MoePlan& plan, int32_t row, float before) {
  constexpr int32_t kAtOnce = 16;
  const float* from = plan.outputs + row;
  float sum = 0;
#pragma unroll 1
  for (int32_t first = 0; first < plan.parts; first += kAtOnce) {
    float values[kAtOnce];
#pragma unroll
    for (int32_t i = 0; i < kAtOnce; ++i) {
      values[i] = first + i < plan.parts ? __ldcg(from + (first + i) * plan.args.hidden) : 0.0f;
    }
#pragma unroll
    for (int32_t i = 0; i < kAtOnce; ++i) sum += values[i];
  }
  plan.args.x[row] = before + sum;
}

/// Blocks (c, p): rows from 128 c on of part p. Of a token that is not there no more is known than where its activations
/// would be: it has no live columns, and matrix 0.
__global__ void __launch_bounds__(kThreads, 5) moe_down_columns(const MoePlan plan) {
  __shared__ Place places[kColumns][kGroups];
  __shared__ uint4 activations[kMoeListBlocks][2];
  __shared__ uint16_t list[kMoeListBlocks * 16];
  __shared__ float totals[kWarps][kColumnRows];
  __shared__ int32_t counts[kWarps];
  grid_dependency_launch();
  const int32_t thread = int32_t(threadIdx.x), group = thread / 4, quarter = thread % 4;
  const int32_t out = plan.args.hidden;
  const int32_t row = int32_t(blockIdx.x) * kColumnRows + thread;
  const Part part(plan, 0, int32_t(blockIdx.y));
  const auto constants = [&](size_t matrix, float& scale, float& bias) {
    const size_t index = matrix * size_t(out) + size_t(row);
    if (row < out) scale = part.weight.row_scales[index];
    if (row < out && part.bias != nullptr) bias = part.bias[index];
  };
  float scale = 0, bias = 0, share = 1;
  int32_t matrix = 0;
  if (!part.routed) constants(0, scale, bias);
  const uint32_t codes_at = blockIdx.x * 64 + uint32_t(quarter) * 16;
  const uint32_t scales_at =
      uint32_t(column_scales_offset(out)) + blockIdx.x * kColumnRows + uint32_t(quarter) * 32;

  grid_dependency_wait();
  const bool exists = plan.step->tokens > 0;
  if (part.routed) {
    matrix = __ldcg(plan.chosen + part.entry);
    share = __ldcg(plan.weights + part.entry);
  }
  const float before = row < out ? __ldcg(plan.args.x + row) : 0.0f;
  if (!exists) matrix = 0;
  if (part.routed) constants(size_t(matrix), scale, bias);

  float sums[32] = {};
#pragma unroll 1
  for (int32_t start = part.first; start < part.last; start += kMoeListBlocks) {
    uint4 own[2] = {};
    // Whether the token exists is not waited for: what there is not, is not listed.
    if (start + thread < part.last) {
      const uint4* from = reinterpret_cast<const uint4*>(part.hidden + start * kBlockInputs) + thread * 2;
      own[0] = __ldcg(from);
      own[1] = __ldcg(from + 1);
    }
    if (!exists) own[0] = own[1] = make_uint4(0, 0, 0, 0);
    activations[thread][0] = own[0];
    activations[thread][1] = own[1];
    const int32_t total = list_live(own, list, counts);
    const uint8_t* data = part.weight.data + size_t(matrix) * part.weight.matrix_bytes +
                          size_t(start) * column_block_bytes(out);
#pragma unroll 1
    for (int32_t first = group; first - group < total; first += kColumns * kGroups) {
#pragma unroll 1
      for (int32_t c = 0, i = first; c < kColumns && i < total; ++c, i += kGroups) {
        const uint32_t column = list[i];
        const uint8_t* block = data + (column / 16) * uint32_t(column_block_bytes(out));
        Place& place = places[c][group];
        copy_async(place.codes + quarter, block + (column % 16) * uint32_t(column_bytes(out)) + codes_at);
        copy_async(place.scales + 2 * quarter, block + scales_at);
        copy_async(place.scales + 2 * quarter + 1, block + scales_at + 16);
      }
      copy_async_commit();
      copy_async_wait<0>();
      __syncwarp();
#pragma unroll 1
      for (int32_t c = 0, i = first; c < kColumns && i < total; ++c, i += kGroups) {
        const Place& place = places[c][group];
        const uint4 codes = place.codes[quarter];
        const uint32_t* scales = reinterpret_cast<const uint32_t*>(place.scales) + quarter;
        const float activation =
            bf16_to_float(reinterpret_cast<const uint16_t*>(activations)[list[i]]) * kHalfUnit;
        add_rows<0>(codes, scales[0], scales[16], activation, sums);
        add_rows<1>(codes, scales[4], scales[20], activation, sums);
        add_rows<2>(codes, scales[8], scales[24], activation, sums);
        add_rows<3>(codes, scales[12], scales[28], activation, sums);
      }
      __syncwarp();
    }
    __syncthreads();
  }

  add_groups(sums);
  *reinterpret_cast<float4*>(&totals[thread / 32][thread % 32 * 4]) =
      make_float4(sums[0], sums[1], sums[2], sums[3]);
  __syncthreads();
  if (!exists) return;
  float sum = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) sum += totals[w][thread];
  if (row < out) plan.outputs[int32_t(blockIdx.y) * out + row] = (sum * kHalfUnit * scale + bias) * share;

  // Warps arrive by themselves. The last of the parts of their rows adds them all up.
  __syncwarp();
  uint32_t* counter = plan.arrivals + blockIdx.x * kWarps + uint32_t(thread / 32);
  uint32_t arrived = 0;
  if (thread % 32 == 0) arrived = arrive_on(counter, 1);
  arrived = __shfl_sync(0xffffffffu, arrived, 0);
  __syncwarp();
  if (arrived != uint32_t(plan.parts) - 1) return;
  if (thread % 32 == 0) *counter = 0;
  if (row < out) add_parts(plan, row, before);
}

}  // namespace

cudaError_t moe_down_skip(const MoePlan& plan, const CudaTarget& target) {
  const unsigned chunks = unsigned(round_up(plan.args.hidden, kColumnRows) / kColumnRows);
  return launch(target, {{chunks, unsigned(plan.parts)}, kThreads}, moe_down_columns, plan);
}

}  // namespace nibblet
