#pragma once

#include "kernels/cuda/device.h"

namespace nibblet {

/// The sum over the warp, the same in every lane. All lanes take part.
__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, distance);
  }
  return value;
}

/// The sum over the lanes up to and with this one. All lanes take part.
__device__ __forceinline__ int32_t warp_sum_so_far(int32_t value, int32_t lane) {
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const int32_t before = __shfl_up_sync(0xffffffffu, value, unsigned(distance));
    if (lane >= distance) value += before;
  }
  return value;
}

/// Four floats that an earlier kernel may have written, past the first-level cache. `from` is 16-byte aligned.
__device__ __forceinline__ float4 load4(const float* from) {
  return __ldcg(reinterpret_cast<const float4*>(from));
}

}  // namespace nibblet
