#pragma once

#include "kernels/cuda/device.h"

namespace nibblet {

/// Counts a block in once all of its threads are here; what they wrote, the last one's read.
/// @return to all threads: whether it is the last of `expected`, in which case the counter is zero again
__device__ __forceinline__ bool arrive_last(uint32_t* counter, int32_t expected, bool& shared_flag) {
  __syncthreads();
  if (threadIdx.x == 0) {
    shared_flag = arrive_on(counter, 1) + 1 == uint32_t(expected);
    if (shared_flag) *counter = 0;
  }
  __syncthreads();
  return shared_flag;
}

}  // namespace nibblet
