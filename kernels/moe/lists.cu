#include "kernels/cuda/device.h"
#include "kernels/moe/plan.h"

namespace nibblet {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

/// How many threads before this one hold `flag`, and how many do in all.
struct Place {
  int32_t before;
  int32_t total;
};

__device__ Place place_in_block(bool flag, int32_t* sums) {
  const int32_t warp = int32_t(threadIdx.x) / 32, lane = int32_t(threadIdx.x) % 32;
  const uint32_t votes = __ballot_sync(0xffffffffu, flag);
  __syncthreads();
  if (lane == 0) sums[warp] = __popc(votes);
  __syncthreads();
  Place place = {__popc(votes & ((1u << lane) - 1)), 0};
  for (int32_t w = 0; w < kWarps; ++w) {
    if (w < warp) place.before += sums[w];
    place.total += sums[w];
  }
  return place;
}

/// The entries of one expert a block, in order, and its tiles. Every block counts the entries of all experts.
__global__ void __launch_bounds__(kThreads) moe_list_entries(const MoePlan plan) {
  __shared__ int32_t sums[kWarps];
  __shared__ int32_t starts[2];
  int32_t* counts = dynamic_shared<int32_t>();
  grid_dependency_launch();
  grid_dependency_wait();
  const MoeArgs& args = plan.args;
  const int32_t thread = int32_t(threadIdx.x), expert = int32_t(blockIdx.x);
  const int32_t all = plan.step->tokens * args.top_k;
  for (int32_t e = thread; e < args.experts; e += kThreads) counts[e] = 0;
  if (thread < 2) starts[thread] = 0;
  __syncthreads();
  for (int32_t i = thread; i < all; i += kThreads) atomicAdd(counts + __ldcg(plan.chosen + i), 1);
  __syncthreads();
  for (int32_t e = thread; e < expert; e += kThreads) {
    atomicAdd(starts, counts[e]);
    atomicAdd(starts + 1, (counts[e] + kMoeTileTokens - 1) / kMoeTileTokens);
  }
  __syncthreads();
  const int32_t first = starts[0], first_tile = starts[1], count = counts[expert];
  const int32_t tiles = (count + kMoeTileTokens - 1) / kMoeTileTokens;
  for (int32_t i = thread; i < tiles; i += kThreads) {
    const int32_t begin = i * kMoeTileTokens;
    plan.tiles[first_tile + i] = {expert, first + begin, min(count - begin, kMoeTileTokens)};
  }
  if (thread == 0 && expert == args.experts - 1) *plan.tile_count = first_tile + tiles;
  if (count == 0) return;
  int32_t done = first;
  for (int32_t start = 0; start < all; start += kThreads) {
    const int32_t i = start + thread;
    const bool own = i < all && __ldcg(plan.chosen + i) == expert;
    const Place place = place_in_block(own, sums);
    if (own) plan.entries[done + place.before] = i;
    done += place.total;
  }
}

}  // namespace

cudaError_t moe_list(const MoePlan& plan, const CudaTarget& target) {
  const size_t shared_bytes = size_t(plan.args.experts) * sizeof(int32_t);
  const cudaError_t error = allow_shared_memory(moe_list_entries, shared_bytes);
  if (error != cudaSuccess) return error;
  return launch(target, {unsigned(plan.args.experts), kThreads, shared_bytes}, moe_list_entries, plan);
}

}  // namespace nibblet
