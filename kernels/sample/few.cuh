#pragma once

#include "kernels/sample/select.cuh"

namespace nibblet {

/// The tokens of a row, penalised or raw, by the groups whose best one reaches far enough up.
struct TokenItems {
  Scores scores;
  TokenOrder order;
  const uint32_t* group_best;
  int32_t groups;

  /// visit(number) for every token whose number is at least `low`. All threads call it, and need a barrier after it.
  template <class Visit>
  __device__ void for_each(uint64_t low, Visit visit) const {
    SelectShared& shared = select_shared();
    __syncthreads();
    if (threadIdx.x == 0) shared.listed = 0;
    __syncthreads();
    for (int32_t g = int(threadIdx.x); g < groups; g += kSampleThreads) {
      if (order.most(group_best[g]) >= low) shared.list[atomicAdd(&shared.listed, 1)] = uint16_t(g);
    }
    __syncthreads();
    constexpr int kAtOnce = 4;
    const int32_t count = shared.listed;
    const uint32_t least = order.score_bits(low);
    const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
#pragma unroll 1
    for (int32_t i = warp; i < count; i += kSampleWarps * kAtOnce) {
      // Which of the 16 tokens may be meant; few are, and those are looked at again, one by one.
      uint32_t wanted = 0;
      float values[kAtOnce][4] = {};
      int counts[kAtOnce];
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        counts[j] = 0;
        if (i + j * kSampleWarps >= count) continue;
        const int32_t id = shared.list[i + j * kSampleWarps] * kGroup + 4 * lane;
        counts[j] = load_logits(scores.logits, scores.vocabulary, id, values[j]);
      }
#pragma unroll
      for (int k = 0; k < 4 * kAtOnce; ++k) {
        if (k % 4 >= counts[k / 4]) continue;
        if (scores.seen != nullptr || TokenOrder::of_score(values[k / 4][k % 4]) >= least) wanted |= 1u << k;
      }
#pragma unroll 1
      for (; wanted != 0; wanted &= wanted - 1) {
        const int k = __ffs(int(wanted)) - 1;
        const int32_t id = shared.list[i + k / 4 * kSampleWarps] * kGroup + 4 * lane + k % 4;
        const uint64_t number = order(scores(id), id);
        if (number >= low) visit(number);
      }
    }
  }
};

/// A TokenOrder::of_score that at least `count` groups reach, and not many more: by bisection. Each thread holds some.
template <int kEach>
__device__ uint32_t score_of_groups(const TokenItems& tokens, int32_t count) {
  uint32_t held[kEach];
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int32_t g = int32_t(threadIdx.x) + i * kSampleThreads;
    held[i] = g < tokens.groups ? tokens.group_best[g] : 0;
  }
  uint32_t low = TokenOrder::of_score(-std::numeric_limits<float>::infinity());
  uint32_t high = TokenOrder::of_score(std::numeric_limits<float>::infinity()) + 1;
  while (high - low > 1) {
    const uint32_t middle = low + (high - low) / 2;
    int reached = 0;
#pragma unroll
    for (int i = 0; i < kEach; ++i) reached += __syncthreads_count(held[i] >= middle);
    if (reached >= count) {
      low = middle;
      if (reached <= count + count / 4) break;
    } else {
      high = middle;
    }
  }
  return low;
}

/// A number that at least `count` tokens of a row reach: each of the groups that do has one. The work of a block.
__device__ inline uint64_t bound_of_best(const TokenItems& tokens, int32_t count) {
  const uint32_t score = count > tokens.groups ? TokenOrder::of_score(-std::numeric_limits<float>::infinity())
                         : tokens.groups <= 2 * kSampleThreads
                             ? score_of_groups<2>(tokens, count)
                             : score_of_groups<kMostGroups / kSampleThreads>(tokens, count);
  return tokens.order.least(score);
}

/// The best tokens, some more than `count` of them where there is room, ordered by one block. It gives up to kGathered.
/// @param best  no token has a larger number
template <class Weight>
__device__ Ranked rank_best(const TokenItems& tokens, const Weight& weight, int32_t count, uint64_t best) {
  uint64_t low = bound_of_best(tokens, count);
#pragma unroll 1
  for (;;) {
    gather(tokens, weight, low, best);
    if (select_shared().gathered_count <= kGathered) break;
    low = select(tokens, NoWeight{}, low, best, false, uint64_t(count)).token;
  }
  Ranked ranked;
  ranked.rank();
  return ranked;
}

/// Finds in the best tokens of a row, with a top-k of at most kMostFew.
class FewFinder {
 public:
  static constexpr int32_t kMostFew = kGathered / 2;

  __device__ static bool suits(int32_t top_k, int32_t vocabulary, int32_t groups) {
    return top_k > 0 && top_k < vocabulary && top_k <= kMostFew && top_k <= groups / 2;
  }

  __device__ FewFinder(const TokenItems& tokens, const RelativeWeight& weight, const Sampling& sampling,
                       uint64_t best)
      : weight_(weight), min_p_(sampling.min_p), ranked_(rank_best(tokens, weight, sampling.top_k, best)) {}

  /// As select().
  __device__ Cut find(bool by_mass, uint64_t goal) const {
    const SelectShared& shared = select_shared();
    const uint64_t total = by_mass ? shared.gathered_mass : uint64_t(shared.gathered_count);
    goal = goal > 0 ? goal : 1;
    return ranked_.pick(by_mass, goal < total ? goal : total);
  }

  /// How many tokens min-p keeps.
  __device__ uint32_t heavy() const {
    return uint32_t(__syncthreads_count(ranked_.has && weight_(ranked_.token) >= min_p_));
  }

 private:
  RelativeWeight weight_;
  float min_p_;
  Ranked ranked_;
};

}  // namespace nibblet
