#include "kernels/cuda/device.h"
#include "kernels/moe/plan.h"
#include "kernels/pack/layout.h"

namespace nibblet {
namespace {

constexpr int kThreads = 256;

__device__ void add(uint64_t* counter, uint64_t value) {
  if (value != 0) atomicAdd(reinterpret_cast<unsigned long long*>(counter), (unsigned long long)(value));
}

/// Which of 16 hidden activations from `k` on are not zero, of `count`.
__device__ uint32_t live_columns(const uint16_t* row, int32_t k, int32_t count) {
  uint32_t live = 0;
  for (int32_t i = 0; i < count; ++i) live |= uint32_t((__ldcg(row + k + i) & 0x7fff) != 0) << i;
  return live;
}

/// One expert's use by one token in block (slot, token): its activations, and for the first token that uses it the bytes
/// that the products with it read.
__global__ void __launch_bounds__(kThreads) moe_count_slot(const MoePlan plan, uint64_t* counters) {
  grid_dependency_launch();
  grid_dependency_wait();
  const MoeArgs& args = plan.args;
  const int32_t slot = int32_t(blockIdx.x), token = int32_t(blockIdx.y), thread = int32_t(threadIdx.x);
  const int32_t tokens = plan.step->tokens;
  if (token >= tokens) return;
  const bool shared = slot == args.top_k;
  const WeightView& up = shared ? args.shared_up : args.up;
  const WeightView& down = shared ? args.shared_down : args.down;
  // Uses of an expert: tokens of the shared one, entries of the others.
  const int32_t use = shared ? token : token * args.top_k + slot;
  const int32_t uses = shared ? tokens : tokens * args.top_k;
  const int32_t expert = shared ? args.experts : __ldcg(plan.chosen + use);
  const auto is_same = [&](int32_t i) { return shared || __ldcg(plan.chosen + i) == expert; };
  const auto row = [&](int32_t i) {
    return shared ? plan.shared + size_t(i) * size_t(plan.shared_stride)
                  : plan.hidden + size_t(i) * size_t(plan.width_stride);
  };
  bool earlier = false;
  for (int32_t i = thread; i < use; i += kThreads) earlier = earlier || is_same(i);
  const bool first = __syncthreads_or(earlier) == 0;

  uint64_t zeros = 0, bytes = 0;
  for (int32_t k = thread * kBlockInputs; k < up.out; k += kThreads * kBlockInputs) {
    const int32_t count = min(up.out - k, kBlockInputs);
    uint32_t live = live_columns(row(use), k, count);
    zeros += uint64_t(count - __popc(live));
    if (!first || !plan.skips) continue;
    for (int32_t i = use + 1; i < uses; ++i) {
      if (is_same(i)) live |= live_columns(row(i), k, count);
    }
    bytes += uint64_t(__popc(live)) * column_bytes(down.out);
    if (live != 0) bytes += column_block_bytes(down.out) - kBlockInputs * column_bytes(down.out);
  }
  if (thread == 0) {
    add(counters + kMoeActivations, uint64_t(up.out));
    if (!shared) add(counters + kMoeExperts + expert, 1);
    if (first) bytes += up.matrix_bytes + (plan.skips ? 0 : down.matrix_bytes);
  }
  add(counters + kMoeZeros, zeros);
  add(counters + kMoeWeightBytes, bytes);
}

}  // namespace

cudaError_t moe_count(const MoePlan& plan, uint64_t* statistics, const CudaTarget& target) {
  const unsigned slots = unsigned(plan.args.top_k + (plan.has_shared() ? 1 : 0));
  return launch(target, {{slots, unsigned(plan.args.tokens)}, kThreads}, moe_count_slot, plan, statistics);
}

}  // namespace nibblet
