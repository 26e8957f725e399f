#include "kernels/moe/live.cuh"

namespace nibblet {
namespace {

using namespace live;

constexpr int kThreads = kLiveThreads;

/// Blocks (c, p, t): rows from 128 c on of part p of token t. Of a token that is not there no more is known than where its
/// activations would be: it has no live columns, and matrix 0.
__global__ void __launch_bounds__(kThreads, 4) moe_down_columns(const MoePlan plan) {
  __shared__ uint32_t list[kListBlocks * 16];
  __shared__ float totals[kWarps][kColumnRows];
  __shared__ int32_t counts[kWarps];
  __shared__ uint32_t alive[kWarps];
  grid_dependency_launch();
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
    const int32_t total = list_columns(pairs, list, counts, alive);
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
  if (is_last_part(plan, plan.arrivals + rows * kWarps + size_t(thread / 32))) combine(plan, token, row);
}

}  // namespace

cudaError_t moe_down_skip(const MoePlan& plan, const CudaTarget& target) {
  const unsigned chunks = unsigned(round_up(plan.args.hidden, kColumnRows) / kColumnRows);
  return launch(target, {{chunks, unsigned(plan.parts), unsigned(plan.args.tokens)}, kThreads},
                moe_down_columns, plan);
}

}  // namespace nibblet
