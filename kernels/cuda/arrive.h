#pragma once

#include "kernels/cuda/device.h"

namespace nibblet {

/// Counts a block in once all of its threads are here. What any of them wrote before, all threads of the last block read
/// after: the barriers pass on what arrive_on releases and acquires, so that no thread needs a fence of its own.
/// @param meanwhile  work that nobody waits for, while the counter is on its way; what it writes, the last block may not see
/// @return to all threads: whether it is the last of `expected`, in which case the next kernel finds the counter zero again
template <class Work>
__device__ __forceinline__ bool arrive_last(uint32_t* counter, int32_t expected, bool& shared_flag,
                                            const Work& meanwhile) {
  __syncthreads();
  if (threadIdx.x == 0) shared_flag = arrive_on(counter, 1) + 1 == uint32_t(expected);
  meanwhile();
  __syncthreads();
  if (!shared_flag) return false;
  if (threadIdx.x == 0) *counter = 0;
  return true;
}

__device__ __forceinline__ bool arrive_last(uint32_t* counter, int32_t expected, bool& shared_flag) {
  return arrive_last(counter, expected, shared_flag, [] {});
}

}  // namespace nibblet
