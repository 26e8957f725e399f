#include "kernels/moe/live.cuh"

namespace nibblet {
namespace {

using namespace live;

constexpr int kThreads = kLiveThreads;
/// Bytes from the scales of one block of inputs to the next in shared memory: neighbours lie in other banks.
constexpr int kScalesStride = kColumnRows + 16;

int32_t most_blocks(const MoePlan& plan) {
  const auto of = [](int32_t in, int32_t splits) {
    const int32_t blocks = (in + kBlockInputs - 1) / kBlockInputs;
    return (blocks + splits - 1) / splits;
  };
  const int32_t routed = of(plan.args.down.in, plan.routed_splits);
  const int32_t shared = plan.has_shared() ? of(plan.args.shared_down.in, plan.shared_splits) : 0;
  return routed > shared ? routed : shared;
}

/// Blocks (i, p): plan.live_chunks pieces of 128 rows of one part, first those of the routed experts in the order of
/// `entries`, so that what tokens share is read at about one time. The part is listed once; the scales of the next piece
/// are on their way while one is summed.
__global__ void __launch_bounds__(kThreads, 4) moe_down_live(const MoePlan plan, const int32_t list_blocks) {
  __shared__ float totals[kWarps][kColumnRows];
  __shared__ int32_t counts[kWarps];
  __shared__ uint32_t alive[kWarps];
  grid_dependency_launch();
  const MoeArgs& args = plan.args;
  uint8_t* scales = dynamic_shared<uint8_t>();
  uint32_t* list = reinterpret_cast<uint32_t*>(scales + 2 * size_t(list_blocks) * kScalesStride);
  const int32_t thread = int32_t(threadIdx.x), warp = thread / 32, group = thread / 4, quarter = thread % 4;
  const int32_t out = args.hidden;
  const int32_t chunks = (out + kColumnRows - 1) / kColumnRows;
  const int32_t first_chunk = int32_t(blockIdx.x) * plan.live_chunks;
  const int32_t last_chunk = min(first_chunk + plan.live_chunks, chunks);
  const int32_t routed_parts = args.tokens * args.top_k * plan.routed_splits;

  grid_dependency_wait();
  const int32_t tokens = plan.step->tokens;
  int32_t token, number;
  if (int32_t(blockIdx.y) < routed_parts) {
    const int32_t i = int32_t(blockIdx.y) / plan.routed_splits;
    if (i >= tokens * args.top_k) return;
    const int32_t entry = plan.alone ? i : __ldcg(plan.entries + i);
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
  const uint8_t* data = part.weight.data + size_t(matrix) * part.weight.matrix_bytes +
                        size_t(part.first) * column_block_bytes(out);
  const int32_t total = list_columns(pairs, list, counts, alive);

  const auto stage = [&](int32_t chunk) {
    uint8_t* to = scales + size_t(chunk % 2) * size_t(list_blocks) * kScalesStride;
    const uint8_t* from = data + column_scales_offset(out) + size_t(chunk) * kColumnRows;
    for (int32_t i = thread; chunk < last_chunk && i < (part.last - part.first) * 8; i += kThreads) {
      const int32_t b = i / 8;
      if ((alive[b / 32] >> b % 32 & 1) == 0) continue;
      copy_async(to + b * kScalesStride + i % 8 * 16,
                 from + size_t(b) * column_block_bytes(out) + i % 8 * 16);
    }
    copy_async_commit();
  };
  stage(first_chunk);
  for (int32_t chunk = first_chunk; chunk < last_chunk; ++chunk) {
    const uint8_t* codes = data + size_t(chunk) * 64 + size_t(quarter) * 16;
    const auto load = [&](int32_t i) {
      if (i >= total) return make_uint4(0, 0, 0, 0);
      const uint32_t listed = list[i];
      const uint8_t* block = codes + (listed >> 4 & 0xfff) * column_block_bytes(out);
      return __ldg(reinterpret_cast<const uint4*>(block + (listed & 15) * column_bytes(out)));
    };
    uint4 pieces[kColumns];
#pragma unroll
    for (int c = 0; c < kColumns; ++c) pieces[c] = load(group + c * kGroups);
    stage(chunk + 1);
    const int32_t row = chunk * kColumnRows + thread;
    const size_t index = size_t(matrix) * size_t(out) + size_t(row);
    const float scale = row < out ? part.weight.row_scales[index] : 0.0f;
    const float bias = row < out && part.bias != nullptr ? part.bias[index] : 0.0f;
    const uint8_t* own_scales =
        scales + size_t(chunk % 2) * size_t(list_blocks) * kScalesStride + quarter * 4;
    copy_async_wait<1>();
    __syncthreads();
    float sums[32] = {};
    for (int32_t first = 0; first < total; first += kColumns * kGroups) {
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        const int32_t i = first + group + c * kGroups;
        if (i >= total) continue;
        const uint4 piece = pieces[c];
        pieces[c] = load(i + kColumns * kGroups);
        const uint32_t listed = list[i];
        const float activation = high_half(listed) * kHalfUnit;
        const uint8_t* from = own_scales + (listed >> 4 & 0xfff) * kScalesStride;
        const auto word = [&](int n) { return *reinterpret_cast<const uint32_t*>(from + n * kPanelRows); };
        add_rows<0>(piece, word(0), word(4), activation, sums);
        add_rows<1>(piece, word(1), word(5), activation, sums);
        add_rows<2>(piece, word(2), word(6), activation, sums);
        add_rows<3>(piece, word(3), word(7), activation, sums);
      }
    }
    add_groups(sums);
    *reinterpret_cast<float4*>(&totals[warp][thread % 32 * 4]) =
        make_float4(sums[0], sums[1], sums[2], sums[3]);
    __syncthreads();
    float sum = 0;
    for (int w = 0; w < kWarps; ++w) sum += totals[w][thread];
    if (row < out) {
      plan.outputs[(size_t(token) * size_t(plan.parts) + size_t(number)) * size_t(out) + size_t(row)] =
          (sum * kHalfUnit * scale + bias) * share;
    }
  }
  const size_t rows = size_t(token) * gridDim.x + blockIdx.x;
  if (!is_last_part(plan, plan.arrivals + rows * kWarps + size_t(warp))) return;
  for (int32_t chunk = first_chunk; chunk < last_chunk; ++chunk) {
    combine(plan, size_t(token), chunk * kColumnRows + thread);
  }
}

}  // namespace

cudaError_t moe_down_live_columns(const MoePlan& plan, const CudaTarget& target) {
  const int32_t list_blocks = most_blocks(plan);
  if (list_blocks > kListBlocks) return cudaErrorInvalidValue;
  const size_t shared_bytes = size_t(list_blocks) * (2 * kScalesStride + kBlockInputs * 4);
  const cudaError_t error = allow_shared_memory(moe_down_live, shared_bytes);
  if (error != cudaSuccess) return error;
  const int32_t chunks = round_up(plan.args.hidden, kColumnRows) / kColumnRows;
  const dim3 grid(unsigned((chunks + plan.live_chunks - 1) / plan.live_chunks),
                  unsigned(plan.parts * plan.args.tokens));
  return launch(target, {grid, kThreads, shared_bytes}, moe_down_live, plan, list_blocks);
}

}  // namespace nibblet
