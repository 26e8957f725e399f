#pragma once

#include "kernels/cuda/warp.h"
#include "kernels/moe/plan.h"

namespace nibblet {

/// Which tokens the routed experts have: in global memory, or in shared memory where every block makes its own.
struct MoeLists {
  const int32_t* entries;
  const MoeTile* tiles;
  int32_t tile_count;

  /// Shared memory that they want, a multiple of 16.
  static __host__ __device__ size_t bytes(const MoePlan& plan) {
    if (!plan.local_lists) return 0;
    const size_t entries = size_t(plan.args.tokens) * size_t(plan.args.top_k);
    return round_up_16((sizeof(MoeTile) + 4) * entries + 12 * size_t(plan.args.experts) + 4);
  }

  /// By all threads of a block, whole warps of them, for tokens from 0 on; ready to be read.
  /// @param memory  bytes(plan)
  __device__ MoeLists(const MoePlan& plan, int32_t tokens, void* memory) {
    if (!plan.local_lists) {
      entries = plan.entries;
      tiles = plan.tiles;
      tile_count = tokens > 0 ? __ldcg(plan.tile_count) : 0;
      return;
    }
    static_assert(kMoeListedTokens <= 64);
    const MoeArgs& args = plan.args;
    const int32_t thread = int32_t(threadIdx.x), threads = int32_t(blockDim.x), lane = thread % 32;
    const int32_t experts = args.experts, all = tokens * args.top_k, room = args.tokens * args.top_k;
    // Asked for once, and before it is known how many tokens there are.
    constexpr int kOwn = 2;
    int32_t own_chosen[kOwn];
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      own_chosen[i] = thread + i * threads < room ? __ldcg(plan.chosen + thread + i * threads) : 0;
    }
    const auto for_each_entry = [&](const auto& use) {
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
        if (thread + i * threads < all) use(thread + i * threads, own_chosen[i]);
      }
#pragma unroll 1
      for (int32_t i = thread + kOwn * threads; i < all; i += threads) use(i, __ldcg(plan.chosen + i));
    };
    MoeTile* made_tiles = static_cast<MoeTile*>(memory);
    int32_t* made_entries = reinterpret_cast<int32_t*>(made_tiles + args.tokens * args.top_k);
    uint32_t* masks = reinterpret_cast<uint32_t*>(made_entries + args.tokens * args.top_k);
    int32_t* starts = reinterpret_cast<int32_t*>(masks + 2 * experts);
#pragma unroll 1
    for (int32_t i = thread; i < 2 * experts; i += threads) masks[i] = 0;
    __syncthreads();
    for_each_entry([&](int32_t i, int32_t e) {
      const int32_t token = int32_t(uint32_t(i) / uint32_t(args.top_k));
      atomicOr(masks + 2 * e + token / 32, 1u << token % 32);
    });
    __syncthreads();
    if (thread < 32) {
      // Entries in the low half of a sum, tiles in the high one.
      int32_t before = 0;
#pragma unroll 1
      for (int32_t first = 0; first < experts; first += 32) {
        const int32_t e = first + lane;
        int32_t count = 0;
        if (e < experts) count = __popc(masks[2 * e]) + __popc(masks[2 * e + 1]);
        const int32_t own = count | (count + kMoeTileTokens - 1) / kMoeTileTokens << 16;
        const int32_t sum = warp_sum_so_far(own, lane);
        const int32_t start = before + sum - own;
        if (e < experts) starts[e] = start & 0xffff;
#pragma unroll 1
        for (int32_t i = 0; i * kMoeTileTokens < count; ++i) {
          made_tiles[(start >> 16) + i] = {e, (start & 0xffff) + i * kMoeTileTokens,
                                           min(count - i * kMoeTileTokens, kMoeTileTokens)};
        }
        before += __shfl_sync(0xffffffffu, sum, 31);
      }
      if (lane == 0) starts[experts] = before >> 16;
    }
    __syncthreads();
    for_each_entry([&](int32_t i, int32_t e) {
      const int32_t token = int32_t(uint32_t(i) / uint32_t(args.top_k));
      const uint32_t earlier = masks[2 * e + token / 32] & ((1u << token % 32) - 1);
      made_entries[starts[e] + __popc(earlier) + (token >= 32 ? __popc(masks[2 * e]) : 0)] = i;
    });
    __syncthreads();
    entries = made_entries;
    tiles = made_tiles;
    tile_count = starts[experts];
  }

  /// Leaves the entries to later kernels, where they are not in global memory anyway. By all threads of a block.
  __device__ void publish(const MoePlan& plan, int32_t tokens) const {
    if (!plan.local_lists) return;
#pragma unroll 1
    for (int32_t i = int32_t(threadIdx.x); i < tokens * plan.args.top_k; i += int32_t(blockDim.x)) {
      plan.entries[i] = entries[i];
    }
  }

 private:
  static __host__ __device__ size_t round_up_16(size_t bytes) { return (bytes + 15) / 16 * 16; }
};

}  // namespace nibblet
