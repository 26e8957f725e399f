#pragma once

#include "kernels/moe/route.cuh"

/// The choice of experts for one token, by all threads of a block: a warp alone (route.cuh) takes the longer, and all of `up`
/// waits for it (up 13.1 us against 15.6, nano-30b on an H100).
namespace nibblet {

/// Shared memory of a choice.
struct MoeBlockChoice {
  float* scores;  ///< [experts]
  float*
      choice;  ///< [experts, padded to a multiple of 32] score + bias, -infinity for what must not be chosen
  float* groups;    ///< [groups]
  uint32_t* marks;  ///< [experts / 32] bits of the chosen
  int32_t* chosen;  ///< [top_k] ascending

  static __host__ __device__ size_t bytes(const MoeArgs& args) {
    const size_t experts = size_t(round_up(args.experts, 32));
    return 4 * (2 * experts + size_t(args.groups) + experts / 32 + size_t(args.top_k));
  }

  __device__ MoeBlockChoice(const MoeArgs& args, void* memory) {
    const int32_t experts = round_up(args.experts, 32);
    scores = static_cast<float*>(memory);
    choice = scores + experts;
    groups = choice + experts;
    marks = reinterpret_cast<uint32_t*>(groups + args.groups);
    chosen = reinterpret_cast<int32_t*>(marks + experts / 32);
  }
};

/// The sum of the two largest of `count` values, or the only one.
__device__ inline float moe_group_score(const float* values, int32_t count) {
  float best = values[0], second = kMoeNever;
#pragma unroll 1
  for (int32_t i = 1; i < count; ++i) {
    second = fmaxf(second, fminf(best, values[i]));
    best = fmaxf(best, values[i]);
  }
  return count == 1 ? best : best + second;
}

/// How many of `count` values precede number `index`, where larger ones come first, then those of lower index.
__device__ inline int32_t moe_rank(const float* values, int32_t count, int32_t index) {
  const float own = values[index];
  int32_t rank = 0;
#pragma unroll 1
  for (int32_t i = 0; i < count; ++i) rank += values[i] > own || (values[i] == own && i < index);
  return rank;
}

/// Keeps the experts of all but the topk_groups best groups from being chosen.
__device__ inline void moe_mask_groups_by_block(const MoeArgs& args, const MoeBlockChoice& choice) {
  const int32_t size = args.experts / args.groups;
  for (int32_t g = int32_t(threadIdx.x); g < args.groups; g += int32_t(blockDim.x)) {
    choice.groups[g] = moe_group_score(choice.choice + g * size, size);
  }
  __syncthreads();
  for (int32_t g = int32_t(threadIdx.x); g < args.groups; g += int32_t(blockDim.x)) {
    if (moe_rank(choice.groups, args.groups, g) < args.topk_groups) continue;
    for (int32_t i = 0; i < size; ++i) choice.choice[g * size + i] = kMoeNever;
  }
  __syncthreads();
}

/// A choice takes four calls by all threads of a block, a multiple of a warp, and a barrier between each and the next. This
/// is the first. @param scores  of the token's experts, in global memory
__device__ inline void moe_read_scores(const MoeArgs& args, const float* scores,
                                       const MoeBlockChoice& choice) {
  const int32_t padded = round_up(args.experts, 32);
#pragma unroll 1
  for (int32_t e = int32_t(threadIdx.x); e < padded; e += int32_t(blockDim.x)) {
    const float score = e < args.experts ? __ldcg(scores + e) : 0.0f;
    const float sum = e < args.experts ? score + args.bias[e] : kMoeNever;
    choice.scores[e] = score;
    choice.choice[e] = sum == sum ? sum : kMoeNever;
    if (e % 32 == 0) choice.marks[e / 32] = 0;
  }
}

/// Marks the chosen.
__device__ inline void moe_mark_chosen(const MoeArgs& args, const MoeBlockChoice& choice) {
  if (args.topk_groups < args.groups) moe_mask_groups_by_block(args, choice);
  const int32_t thread = int32_t(threadIdx.x), threads = int32_t(blockDim.x);
  const int32_t padded = round_up(args.experts, 32);
  // Four threads an expert count those that precede it.
  const int32_t quarter = thread % 4;
#pragma unroll 1
  for (int32_t start = 0; start < args.experts; start += threads / 4) {
    const int32_t e = start + thread / 4;
    const float own = choice.choice[e < args.experts ? e : 0];
    int32_t rank = 0;
#pragma unroll 2
    for (int32_t i = quarter * 4; i < padded; i += 16) {
      const float4 other = *reinterpret_cast<const float4*>(choice.choice + i);
      rank += other.x > own || (other.x == own && i < e);
      rank += other.y > own || (other.y == own && i + 1 < e);
      rank += other.z > own || (other.z == own && i + 2 < e);
      rank += other.w > own || (other.w == own && i + 3 < e);
    }
    rank += __shfl_xor_sync(0xffffffffu, rank, 1);
    rank += __shfl_xor_sync(0xffffffffu, rank, 2);
    if (quarter == 0 && e < args.experts && rank < args.top_k) atomicOr(choice.marks + e / 32, 1u << e % 32);
  }
}

/// Sets choice.chosen.
__device__ inline void moe_list_chosen(const MoeArgs& args, const MoeBlockChoice& choice) {
#pragma unroll 1
  for (int32_t e = int32_t(threadIdx.x); e < args.experts; e += int32_t(blockDim.x)) {
    const uint32_t marks = choice.marks[e / 32];
    if ((marks >> e % 32 & 1) == 0) continue;
    int32_t place = __popc(marks & ((1u << e % 32) - 1));
#pragma unroll 1
    for (int32_t i = 0; i < e / 32; ++i) place += __popc(choice.marks[i]);
    choice.chosen[place] = e;
  }
}

/// Stores what was chosen and its weights, for the kernels that follow.
__device__ inline void moe_store_chosen(const MoeArgs& args, const MoeBlockChoice& choice, int32_t* chosen,
                                        float* weights) {
#pragma unroll 1
  for (int32_t i = int32_t(threadIdx.x); i < args.top_k; i += int32_t(blockDim.x)) {
    float sum = 0;
#pragma unroll 1
    for (int32_t k = 0; k < args.top_k; ++k) sum += choice.scores[choice.chosen[k]];
    const float score = choice.scores[choice.chosen[i]];
    chosen[i] = choice.chosen[i];
    weights[i] = (args.normalize ? score / (sum + 1e-20f) : score) * args.scale;
  }
}

}  // namespace nibblet
