#pragma once

#include <cmath>

#include "kernels/cuda/device.h"
#include "kernels/moe/plan.h"

/// The choice of experts for one token, by one warp.
namespace nibblet {

constexpr float kMoeNever = -INFINITY;

/// Floats as integers that compare alike, -infinity first; NaN as -infinity. No float becomes 0. The sum of a sigmoid and
/// a bias is never -0.
__device__ inline uint32_t moe_key(float value) {
  const uint32_t bits = __float_as_uint(value == value ? value : kMoeNever);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}
__device__ inline float moe_key_value(uint32_t key) {
  return __uint_as_float(key >> 31 ? key & 0x7fffffffu : ~key);
}

/// Shared memory of a choice.
struct MoeChoice {
  float* scores;     ///< [experts]
  uint32_t* keys;    ///< [experts] of score + bias
  uint32_t* groups;  ///< [groups] of the sum of their two best
  int32_t* found;    ///< [top_k] best first
  int32_t* chosen;   ///< [top_k] ascending

  static __host__ __device__ size_t bytes(const MoeArgs& args) {
    return 4 * (2 * size_t(args.experts) + size_t(args.groups) + 2 * size_t(args.top_k));
  }

  __device__ MoeChoice(const MoeArgs& args, void* memory) {
    scores = static_cast<float*>(memory);
    keys = reinterpret_cast<uint32_t*>(scores + args.experts);
    groups = keys + args.experts;
    found = reinterpret_cast<int32_t*>(groups + args.groups);
    chosen = found + args.top_k;
  }
  __device__ void set(int32_t expert, float score, float bias) const {
    scores[expert] = score;
    keys[expert] = moe_key(score + bias);
  }
};

/// The largest key among those that a lane owns, and the lowest index that has it.
struct MoeBest {
  uint32_t key = 0;
  int32_t index = 0;
  __device__ MoeBest(const uint32_t* keys, int32_t count, int32_t lane) {
#pragma unroll 4
    for (int32_t i = lane; i < count; i += 32) {
      if (keys[i] > key) key = keys[i], index = i;
    }
  }
};

/// Takes the `wanted` largest of `count` keys, lower indices first among equals: `take(i, index)` is called by all lanes
/// for the i-th. Their keys become 0.
template <class Take>
__device__ void moe_take_best(uint32_t* keys, int32_t count, int32_t wanted, const Take& take) {
  const int32_t lane = int32_t(threadIdx.x) % 32;
  MoeBest best(keys, count, lane);
#pragma unroll 1
  for (int32_t i = 0; i < wanted; ++i) {
    const uint32_t key = __reduce_max_sync(0xffffffffu, best.key);
    const uint32_t votes = __ballot_sync(0xffffffffu, best.key == key);
    int32_t index = __shfl_sync(0xffffffffu, best.index, __ffs(int(votes)) - 1);
    if ((votes & (votes - 1)) != 0) {
      index = int32_t(__reduce_min_sync(0xffffffffu, uint32_t(best.key == key ? best.index : 0x7fffffff)));
    }
    take(i, index);
    if (index % 32 == lane) {
      keys[index] = 0;
      best = MoeBest(keys, count, lane);
    }
  }
}

/// Keeps the experts of all but the topk_groups best groups from being chosen.
__device__ inline void moe_mask_groups(const MoeArgs& args, const MoeChoice& choice) {
  const int32_t size = args.experts / args.groups, lane = int32_t(threadIdx.x) % 32;
#pragma unroll 1
  for (int32_t g = lane; g < args.groups; g += 32) {
    uint32_t best = 0, second = 0;
#pragma unroll 1
    for (int32_t i = g * size; i < (g + 1) * size; ++i) {
      second = max(second, min(best, choice.keys[i]));
      best = max(best, choice.keys[i]);
    }
    choice.groups[g] = size == 1 ? best : moe_key(moe_key_value(best) + moe_key_value(second));
  }
  __syncwarp();
  moe_take_best(choice.groups, args.groups, args.topk_groups, [](int32_t, int32_t) {});
  __syncwarp();
#pragma unroll 1
  for (int32_t e = lane; e < args.experts; e += 32) {
    if (choice.groups[e / size] != 0) choice.keys[e] = moe_key(kMoeNever);
  }
  __syncwarp();
}

/// Sets choice.chosen from scores and keys, which the whole warp sees; the same goes for the result.
__device__ inline void moe_choose(const MoeArgs& args, const MoeChoice& choice) {
  const int32_t lane = int32_t(threadIdx.x) % 32;
  if (args.topk_groups < args.groups) moe_mask_groups(args, choice);
  moe_take_best(choice.keys, args.experts, args.top_k, [&](int32_t i, int32_t expert) {
    if (lane == 0) choice.found[i] = expert;
  });
  __syncwarp();
#pragma unroll 1
  for (int32_t i = lane; i < args.top_k; i += 32) {
    const int32_t own = choice.found[i];
    int32_t place = 0;
#pragma unroll 1
    for (int32_t k = 0; k < args.top_k; ++k) place += choice.found[k] < own;
    choice.chosen[place] = own;
  }
  __syncwarp();
}

/// Stores what was chosen and its weights: one lane a slot. All lanes of the warp.
__device__ inline void moe_publish(const MoeArgs& args, const MoeChoice& choice, int32_t* chosen,
                                   float* weights) {
  float sum = 0;
#pragma unroll 1
  for (int32_t k = 0; k < args.top_k; ++k) sum += choice.scores[choice.chosen[k]];
#pragma unroll 1
  for (int32_t k = int32_t(threadIdx.x) % 32; k < args.top_k; k += 32) {
    const float score = choice.scores[choice.chosen[k]];
    chosen[k] = choice.chosen[k];
    weights[k] = (args.normalize ? score / (sum + 1e-20f) : score) * args.scale;
  }
}

}  // namespace nibblet
