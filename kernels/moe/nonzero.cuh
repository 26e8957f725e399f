#pragma once

#include "kernels/cuda/warp.h"
#include "kernels/moe/plan.h"

/// Lists of the inputs of `down` that are not zero, for kernels that read only the columns which those multiply.
namespace nibblet {

/// Where in such a list a thread's inputs go, and how many there are in all.
struct MoeListPlace {
  int32_t first;
  int32_t total;
};

/// Of the first kMoeListBlocks threads each lists a block of inputs, in their order; by all threads of the block. Before its
/// next use of `counts` the block meets at a barrier.
/// @tparam kMostThreads  of the block
/// @param own  how many of the thread's inputs are not zero
/// @param counts  [kMoeListBlocks / 32] of shared memory
template <int kMostThreads>
__device__ __forceinline__ MoeListPlace moe_list_place(int32_t own, int32_t* counts) {
  constexpr int kListing = kMoeListBlocks / 32;
  const int32_t warp = int32_t(threadIdx.x) / 32, lane = int32_t(threadIdx.x) % 32;
  const int32_t so_far = warp_sum_so_far(own, lane);
  if (lane == 31 && (kMostThreads == kMoeListBlocks || warp < kListing)) counts[warp] = so_far;
  __syncthreads();
  MoeListPlace place = {so_far - own, 0};
#pragma unroll
  for (int w = 0; w < kListing; ++w) {
    if (w < warp) place.first += counts[w];
    place.total += counts[w];
  }
  return place;
}

}  // namespace nibblet
