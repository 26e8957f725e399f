#pragma once

#include "kernels/sample/layout.cuh"
#include "kernels/sample/order.cuh"

namespace nibblet {

/// So few tokens are ordered by comparing all with all.
constexpr int kGathered = 256;
static_assert(2 * kGathered == kSampleThreads);

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

struct SelectShared {
  uint32_t count[kBins];
  uint32_t mass_low[kBins];
  uint32_t mass_high[kBins];
  union {
    /// A tile before it is sorted: the logits, then in their place where the tokens go.
    float tile[kTile];
    struct {
      union {
        uint16_t list[kMostGroups];
        uint4 list_words[kMostGroups / 8];
      };
      struct {
        uint64_t token, mass;
      } gathered[kGathered];
      uint64_t part_mass[kGathered];
      uint32_t part_count[kGathered];
    };
  };
  uint32_t warp_count[kSampleWarps];
  uint64_t warp_mass[kSampleWarps];
  unsigned long long lowest, highest;
  int32_t listed;
  int32_t gathered_count;
  uint64_t gathered_mass;
  struct {
    int32_t index;
    uint32_t count;
    uint32_t count_before;
    uint64_t mass_before;
  } bin;
  Cut cut;
};
static_assert(kMostGroups >= kTile);

/// The one copy of the block. Functions that are not inlined reach it by name, and so as shared memory.
__device__ __forceinline__ SelectShared& select_shared() {
  __shared__ __align__(16) uint8_t memory[sizeof(SelectShared)];
  return *reinterpret_cast<SelectShared*>(memory);
}

/// Empties the bins; a barrier before and after.
__device__ __forceinline__ void clear_bins() {
  SelectShared& shared = select_shared();
  __syncthreads();
  for (int bin = int(threadIdx.x); bin < kBins; bin += kSampleThreads)
    shared.count[bin] = shared.mass_low[bin] = shared.mass_high[bin] = 0;
  __syncthreads();
}

/// @return how many the bin held
__device__ __forceinline__ uint32_t add_to_bin(int bin, uint64_t mass) {
  SelectShared& shared = select_shared();
  const uint32_t before = atomicAdd(&shared.count[bin], 1u);
  if (mass == 0) return before;
  const uint32_t part = uint32_t(mass);
  // The old value tells every wrap of the lower half, so that the two together add as 64 bits do.
  const uint32_t carry = atomicAdd(&shared.mass_low[bin], part) > ~part ? 1 : 0;
  const uint32_t upper = uint32_t(mass >> 32) + carry;
  if (upper > 0) atomicAdd(&shared.mass_high[bin], upper);
  return before;
}

/// A histogram spread over the threads of a block, each with kThreadBins bins in a row; the first bin holds the best.
struct ThreadBins {
  uint32_t count[kThreadBins];
  uint64_t mass[kThreadBins];
  uint32_t count_before, total_count;
  uint64_t mass_before, total_mass;

  __device__ static int first_bin() { return int(threadIdx.x) * kThreadBins; }

  /// After a barrier.
  __device__ void take_shared() {
    const SelectShared& shared = select_shared();
#pragma unroll
    for (int i = 0; i < kThreadBins; ++i) {
      const int bin = first_bin() + i;
      count[i] = shared.count[bin];
      mass[i] = uint64_t{shared.mass_high[bin]} << 32 | shared.mass_low[bin];
    }
  }

  /// Fills in what comes before, and the totals. All threads call it; a barrier has to come before the next time.
  __device__ void scan() {
    SelectShared& shared = select_shared();
    const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
    uint32_t own_count = 0;
    uint64_t own_mass = 0;
#pragma unroll
    for (int i = 0; i < kThreadBins; ++i) own_count += count[i], own_mass += mass[i];
    count_before = own_count;
    mass_before = own_mass;
    for (int lanes = 1; lanes < 32; lanes *= 2) {
      const uint32_t other_count = __shfl_up_sync(0xffffffffu, count_before, unsigned(lanes));
      const uint64_t other_mass = __shfl_up_sync(0xffffffffu, mass_before, unsigned(lanes));
      if (lane >= lanes) count_before += other_count, mass_before += other_mass;
    }
    if (lane == 31) shared.warp_count[warp] = count_before, shared.warp_mass[warp] = mass_before;
    __syncthreads();
    count_before -= own_count;
    mass_before -= own_mass;
    total_count = 0;
    total_mass = 0;
#pragma unroll
    for (int w = 0; w < kSampleWarps; ++w) {
      if (w < warp) count_before += shared.warp_count[w], mass_before += shared.warp_mass[w];
      total_count += shared.warp_count[w];
      total_mass += shared.warp_mass[w];
    }
  }

  /// Sets shared.bin to the first bin where the sum reaches `goal`; a barrier after. @return the goal, at most the total
  __device__ uint64_t locate(bool by_mass, uint64_t goal) const {
    SelectShared& shared = select_shared();
    const uint64_t total = by_mass ? total_mass : total_count;
    goal = goal < total ? goal : total;
    uint32_t counts = count_before;
    uint64_t masses = mass_before;
#pragma unroll
    for (int i = 0; i < kThreadBins; ++i) {
      const uint64_t before = by_mass ? masses : counts, own = by_mass ? mass[i] : count[i];
      if (before < goal && goal <= before + own) shared.bin = {first_bin() + i, count[i], counts, masses};
      counts += count[i];
      masses += mass[i];
    }
    __syncthreads();
    return goal;
  }
};

}  // namespace nibblet
