#pragma once

#include "kernels/sample/bins.cuh"

namespace nibblet {

/// The weight of a token in masses; selections by rank alone need none.
struct NoWeight {
  __device__ float operator()(uint64_t) const { return 0; }
};
struct RelativeWeight {
  TokenOrder order;
  float largest;
  float temperature;

  __device__ float operator()(uint64_t number) const {
    return relative_weight(order.score(number), largest, temperature);
  }
};

/// Puts the items with numbers in [low, high] into shared.gathered, as far as there is room. The work of a block.
/// `items.for_each(low, visit)` calls visit(number) for each with a number of at least `low`.
template <class Items, class Weight>
__device__ void gather(const Items& items, const Weight& weight, uint64_t low, uint64_t high) {
  SelectShared& shared = select_shared();
  __syncthreads();
  if (threadIdx.x == 0) shared.gathered_count = 0;
  __syncthreads();
  items.for_each(low, [&](uint64_t number) {
    if (number > high) return;
    const int at = atomicAdd(&shared.gathered_count, 1);
    if (at < kGathered) shared.gathered[at] = {number, mass_of(weight(number))};
  });
  __syncthreads();
}

/// What was gathered, at most kGathered: each of the first threads knows one token and what it comes after.
struct Ranked {
  bool has;
  uint64_t token;
  uint32_t count;  ///< tokens from the best down to this one
  uint64_t mass;   ///< theirs
  uint64_t own_mass;

  /// The work of a block. Leaves the mass of all in shared.gathered_mass.
  __device__ void rank() {
    SelectShared& shared = select_shared();
    const int all = shared.gathered_count, half = (all + 1) / 2;
    const int at = int(threadIdx.x) % kGathered;
    const bool second = int(threadIdx.x) >= kGathered;
    has = at < all;
    count = 0;
    mass = 0;
    token = has ? shared.gathered[at].token : 0;
    own_mass = has ? shared.gathered[at].mass : 0;
    const int last = !has ? 0 : second ? all : half;
#pragma unroll 4
    for (int i = second ? half : 0; i < last; ++i) {
      const auto other = shared.gathered[i];
      if (other.token < token) continue;
      ++count;
      mass += other.mass;
    }
    if (second) shared.part_count[at] = count, shared.part_mass[at] = mass;
    __syncthreads();
    has = has && !second;
    if (has) {
      count += shared.part_count[at];
      mass += shared.part_mass[at];
      if (int(count) == all) shared.gathered_mass = mass;
    }
    __syncthreads();
  }

  /// The first token where the sum reaches `goal`, from 1 to that of all.
  __device__ Cut pick(bool by_mass, uint64_t goal) const {
    SelectShared& shared = select_shared();
    const uint64_t sum = by_mass ? mass : count, own = by_mass ? own_mass : 1;
    if (has && sum - own < goal && goal <= sum) shared.cut = {token, count, mass};
    __syncthreads();
    const Cut cut = shared.cut;
    __syncthreads();
    return cut;
  }
};

/// The smallest set of best items, among those with numbers in [low, high], with a mass (or, not by mass, a count) of
/// at least `goal`, with one item at least; all when none has. There must be one. The work of a block: by a histogram
/// over the numbers, and, where a bin holds too many of them to compare, one over the bin.
template <class Items, class Weight>
__device__ __noinline__ Cut select(const Items& items, const Weight& weight, uint64_t low, uint64_t high,
                                   bool by_mass, uint64_t goal) {
  SelectShared& shared = select_shared();
  uint64_t mass_before = 0;
  uint32_t count_before = 0;
  goal = goal > 0 ? goal : 1;
  for (;;) {
    // Not std::bit_width, whose 64-bit form CUDA 13.0 compiles to 0.
    const int bits = high > low ? 64 - __clzll(static_cast<long long>(high - low)) : 0;
    const int shift = bits > kBinBits ? bits - kBinBits : 0;
    clear_bins();
    items.for_each(low, [&](uint64_t number) {
      if (number <= high) add_to_bin(int((high - number) >> shift), mass_of(weight(number)));
    });
    __syncthreads();
    ThreadBins bins;
    bins.take_shared();
    bins.scan();
    goal = bins.locate(by_mass, goal);
    const auto bin = shared.bin;
    goal -= by_mass ? bin.mass_before : bin.count_before;
    mass_before += bin.mass_before;
    count_before += bin.count_before;
    high -= uint64_t(bin.index) << shift;
    const uint64_t width = (uint64_t{1} << shift) - 1;
    if (high - low > width) low = high - width;
    if (bin.count <= kGathered) break;
  }
  gather(items, weight, low, high);
  Ranked ranked;
  ranked.rank();
  Cut cut = ranked.pick(by_mass, goal);
  cut.count += count_before;
  cut.mass += mass_before;
  return cut;
}

}  // namespace nibblet
