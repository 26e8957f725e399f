#pragma once

#include "kernels/sample/layout.cuh"
#include "kernels/sample/order.cuh"

namespace nibblet {

constexpr int kBins = 2048;
constexpr int kBinBits = 11;
/// So few tokens are ordered by comparing all with all.
constexpr int kGathered = 256;

struct SelectShared {
  uint32_t count[kBins];
  uint32_t mass_low[kBins];
  uint32_t mass_high[kBins];
  uint64_t token[kGathered];
  uint64_t mass[kGathered];
  uint16_t group[kMostGroups];
  uint32_t warp_count[kSampleWarps];
  uint64_t warp_mass[kSampleWarps];
  int32_t groups;
  int32_t gathered;
  uint32_t heavy;
  struct {
    int32_t index;
    uint32_t count;
    uint32_t count_before;
    uint64_t mass_before;
  } bin;
  struct {
    uint64_t token;
    uint32_t count;
    uint64_t mass;
  } cut;
};

/// The one copy of the block. Functions that are not inlined reach it by name, and so as shared memory.
__device__ __forceinline__ SelectShared& select_shared() {
  __shared__ __align__(16) uint8_t memory[sizeof(SelectShared)];
  return *reinterpret_cast<SelectShared*>(memory);
}

/// Weights are summed as integers, in units of 2^-44: exactly, whatever the order. A weight is at most 1 and there are at
/// most 2^19. What is cut off below a unit is under 10^-8 of the best token's weight for a whole vocabulary.
constexpr double kMassUnits = 0x1p44;

__device__ __forceinline__ uint64_t mass_of(float weight) { return uint64_t(weight * float(kMassUnits)); }

/// The tokens from the best down to one of them.
struct Cut {
  uint64_t token;  ///< the last: its TokenOrder number
  uint32_t count;
  uint64_t mass;
};

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
    if (threadIdx.x == 0) shared.groups = 0;
    __syncthreads();
    for (int32_t g = int(threadIdx.x); g < groups; g += kSampleThreads) {
      if (order.most(group_best[g]) >= low) shared.group[atomicAdd(&shared.groups, 1)] = uint16_t(g);
    }
    __syncthreads();
    constexpr int kAtOnce = 4;
    const int32_t count = shared.groups;
    const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
    for (int32_t i = warp * kAtOnce; i < count; i += kSampleWarps * kAtOnce) {
      float values[kAtOnce][4] = {};
      int32_t ids[kAtOnce] = {};
      int counts[kAtOnce];
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        counts[j] = 0;
        if (i + j >= count) continue;
        ids[j] = shared.group[i + j] * kGroup + 4 * lane;
        counts[j] = load_logits(scores.logits, scores.vocabulary, ids[j], values[j]);
      }
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          if (k >= counts[j]) continue;
          const uint64_t number =
              order(scores.penalised(ids[j] + k, Scores::defined(values[j][k])), ids[j] + k);
          if (number >= low) visit(number);
        }
      }
    }
  }
};

/// The groups of a row, each as good as its best token.
struct GroupItems {
  TokenOrder order;
  const uint32_t* group_best;
  int32_t groups;

  template <class Visit>
  __device__ void for_each(uint64_t low, Visit visit) const {
    for (int32_t g = int(threadIdx.x); g < groups; g += kSampleThreads) {
      const uint64_t number = order.most(group_best[g]) - uint64_t(g);
      if (number >= low) visit(number);
    }
  }
};

/// For selections by rank alone.
struct NoWeight {
  __device__ float operator()(uint64_t) const { return 0; }
};

/// exp((score - largest) / temperature).
struct RelativeWeight {
  TokenOrder order;
  float largest;
  float temperature;
  __device__ float operator()(uint64_t number) const {
    return relative_weight(order.score(number), largest, temperature);
  }
};

/// Finds where counts and weights, summed from the best item down, reach a goal: by a histogram over the numbers of the
/// items, then, where a bin holds too many of them to compare, one over the bin. The work of a block: all threads call.
template <class Items, class Weight>
class Selection {
 public:
  /// Among the items with numbers in [low, high]; there must be one.
  /// @param least  weight that heavy() counts from
  __device__ Selection(const Items& items, const Weight& weight, uint64_t low, uint64_t high, float least)
      : items_(items), weight_(weight), low_(low), high_(high), least_(least) {}

  /// How many items weigh at least `least`.
  __device__ uint32_t heavy() {
    require_whole();
    return select_shared().heavy;
  }

  /// The smallest set of best items with a mass (or, not by mass, a count) of at least `goal`, with one item at
  /// least; all when none has.
  __device__ __noinline__ Cut find(bool by_mass, uint64_t goal) {
    require_whole();
    uint64_t low = low_, high = high_, mass_before = 0;
    uint32_t count_before = 0;
    goal = goal > 0 ? goal : 1;
    for (;;) {
      goal = locate(by_mass, goal);
      const auto bin = select_shared().bin;
      goal -= by_mass ? bin.mass_before : bin.count_before;
      mass_before += bin.mass_before;
      count_before += bin.count_before;
      high -= uint64_t(bin.index) << shift_;
      const uint64_t width = (uint64_t{1} << shift_) - 1;
      if (high - low > width) low = high - width;
      if (bin.count <= kGathered) break;
      whole_ = false;
      histogram(low, high);
    }
    gather(low, high);
    Cut cut = cut_gathered(by_mass, goal);
    cut.count += count_before;
    cut.mass += mass_before;
    return cut;
  }

  /// Puts the numbers of the items in [low, high], at most kGathered, into shared.token. @return how many
  __device__ __noinline__ int gather(uint64_t low, uint64_t high) {
    SelectShared& shared = select_shared();
    __syncthreads();
    if (threadIdx.x == 0) shared.gathered = 0;
    __syncthreads();
    items_.for_each(low, [&](uint64_t number) {
      if (number > high) return;
      const int at = atomicAdd(&shared.gathered, 1);
      shared.token[at] = number;
      shared.mass[at] = mass_of(weight_(number));
    });
    __syncthreads();
    return shared.gathered;
  }

 private:
  __device__ void require_whole() {
    if (!whole_) histogram(low_, high_);
    whole_ = true;
  }

  /// Bin 0 is that of `high`.
  __device__ __noinline__ void histogram(uint64_t low, uint64_t high) {
    SelectShared& shared = select_shared();
    // Not std::bit_width, whose 64-bit form CUDA 13.0 compiles to 0.
    const int bits = 64 - __clzll(static_cast<long long>(high - low));
    shift_ = bits > kBinBits ? bits - kBinBits : 0;
    __syncthreads();
    for (int bin = int(threadIdx.x); bin < kBins; bin += kSampleThreads)
      shared.count[bin] = shared.mass_low[bin] = shared.mass_high[bin] = 0;
    if (threadIdx.x == 0) shared.heavy = 0;
    __syncthreads();
    items_.for_each(low, [&](uint64_t number) {
      if (number > high) return;
      const float weight = weight_(number);
      const uint64_t mass = mass_of(weight);
      const int bin = int((high - number) >> shift_);
      atomicAdd(&shared.count[bin], 1u);
      if (weight >= least_) atomicAdd(&shared.heavy, 1u);
      if (mass == 0) return;
      const uint32_t part = uint32_t(mass);
      // The old value tells every wrap of the lower half, so that the two together add as 64 bits do.
      const uint32_t carry = atomicAdd(&shared.mass_low[bin], part) > ~part ? 1 : 0;
      const uint32_t upper = uint32_t(mass >> 32) + carry;
      if (upper > 0) atomicAdd(&shared.mass_high[bin], upper);
    });
    __syncthreads();
  }

  /// Sets shared.bin to the first bin where the sum reaches `goal`. @return the goal, at most what there is
  __device__ uint64_t locate(bool by_mass, uint64_t goal) {
    SelectShared& shared = select_shared();
    constexpr int kEach = kBins / kSampleThreads;
    const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32, first = int(threadIdx.x) * kEach;
    uint32_t counts[kEach], count = 0;
    uint64_t masses[kEach], mass = 0;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      counts[i] = shared.count[first + i];
      masses[i] = uint64_t{shared.mass_high[first + i]} << 32 | shared.mass_low[first + i];
      count += counts[i];
      mass += masses[i];
    }
    const uint32_t own_count = count;
    const uint64_t own_mass = mass;
    for (int lanes = 1; lanes < 32; lanes *= 2) {
      const uint32_t other_count = __shfl_up_sync(0xffffffffu, count, unsigned(lanes));
      const uint64_t other_mass = __shfl_up_sync(0xffffffffu, mass, unsigned(lanes));
      if (lane >= lanes) count += other_count, mass += other_mass;
    }
    if (lane == 31) shared.warp_count[warp] = count, shared.warp_mass[warp] = mass;
    __syncthreads();
    uint32_t total_count = 0;
    uint64_t total_mass = 0;
    for (int w = 0; w < kSampleWarps; ++w) {
      if (w < warp) count += shared.warp_count[w], mass += shared.warp_mass[w];
      total_count += shared.warp_count[w];
      total_mass += shared.warp_mass[w];
    }
    const uint64_t total = by_mass ? total_mass : total_count;
    goal = goal < total ? goal : total;
    count -= own_count;
    mass -= own_mass;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const uint64_t before = by_mass ? mass : count, own = by_mass ? masses[i] : counts[i];
      if (before < goal && goal <= before + own) shared.bin = {first + i, counts[i], count, mass};
      count += counts[i];
      mass += masses[i];
    }
    __syncthreads();
    return goal;
  }

  /// find() among what was gathered.
  __device__ Cut cut_gathered(bool by_mass, uint64_t goal) {
    SelectShared& shared = select_shared();
    if (int(threadIdx.x) < shared.gathered) {
      const uint64_t token = shared.token[threadIdx.x];
      uint32_t count = 0;
      uint64_t mass = 0;
      for (int i = 0; i < shared.gathered; ++i) {
        if (shared.token[i] < token) continue;
        ++count;
        mass += shared.mass[i];
      }
      const uint64_t sum = by_mass ? mass : count, own = by_mass ? shared.mass[threadIdx.x] : 1;
      if (sum - own < goal && goal <= sum) shared.cut = {token, count, mass};
    }
    __syncthreads();
    return {shared.cut.token, shared.cut.count, shared.cut.mass};
  }

  Items items_;
  Weight weight_;
  uint64_t low_, high_;
  float least_;
  int shift_ = 0;
  bool whole_ = false;
};

/// A number that at least `count` tokens of a row reach: that of the best token of its count-th best group.
/// @param best  no token has a larger number
__device__ inline uint64_t bound_of_best(const TokenItems& tokens, int32_t count, uint64_t best) {
  const TokenOrder& order = tokens.order;
  const uint64_t lowest = order.least(TokenOrder::of_score(-std::numeric_limits<float>::infinity()));
  if (count > tokens.groups) return lowest;
  Selection<GroupItems, NoWeight> groups({order, tokens.group_best, tokens.groups}, {}, lowest,
                                         order.most(order.score_bits(best)), 1);
  return order.least(order.score_bits(groups.find(false, uint32_t(count)).token));
}

}  // namespace nibblet
