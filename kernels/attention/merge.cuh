#pragma once

#include "kernels/attention/tile.cuh"

/// How sums over parts of a context become one, always in the order of the parts.
namespace nibblet::attention_device {

constexpr int kAttendThreads = 256;
constexpr int kAttendWarps = kAttendThreads / 32;
/// Columns of the sums that a thread holds when a block has merged its warps: column 2·warp + i.
constexpr int kOwnColumns = kValueColumns / kAttendWarps;

/// 16 query rows over some positions. `sums` lie as the lanes of a warp hold them (tile.cuh).
struct Partial {
  float4 sums[kValueColumns][32];
  float largest[kRows];
  float total[kRows];
};

/// A thread's part of one, for rows g and g + 8.
struct Own {
  float largest[2];
  float total[2];
  float4 sums[kOwnColumns];
};

__device__ __forceinline__ void store_partial(const Own& own, Partial* to) {
  const int lane = int(threadIdx.x) % 32;
  const int warp = int(threadIdx.x) / 32;
#pragma unroll
  for (int i = 0; i < kOwnColumns; ++i) to->sums[warp * kOwnColumns + i][lane] = own.sums[i];
  if (warp == 0 && lane % 4 == 0) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      to->largest[lane / 4 + 8 * half] = own.largest[half];
      to->total[lane / 4 + 8 * half] = own.total[half];
    }
  }
}

/// Partials from[0] to from[count - 1], by all threads of a block.
__device__ __forceinline__ Own merge_partials(const Partial* from, int32_t count) {
  const int lane = int(threadIdx.x) % 32;
  const int warp = int(threadIdx.x) / 32;
  const int row = lane / 4;
  Own own = {{-INFINITY, -INFINITY}, {0, 0}, {}};
#pragma unroll 4
  for (int32_t p = 0; p < count; ++p) {
    own.largest[0] = fmaxf(own.largest[0], from[p].largest[row]);
    own.largest[1] = fmaxf(own.largest[1], from[p].largest[row + 8]);
  }
  const float offset0 = softmax_offset(own.largest[0]);
  const float offset1 = softmax_offset(own.largest[1]);
#pragma unroll 4
  for (int32_t p = 0; p < count; ++p) {
    const float factor0 = std::exp(from[p].largest[row] - offset0);
    const float factor1 = std::exp(from[p].largest[row + 8] - offset1);
    own.total[0] = fmaf(factor0, from[p].total[row], own.total[0]);
    own.total[1] = fmaf(factor1, from[p].total[row + 8], own.total[1]);
#pragma unroll
    for (int i = 0; i < kOwnColumns; ++i) {
      const float4 part = from[p].sums[warp * kOwnColumns + i][lane];
      float4& sum = own.sums[i];
      sum = {fmaf(factor0, part.x, sum.x), fmaf(factor0, part.y, sum.y), fmaf(factor1, part.z, sum.z),
             fmaf(factor1, part.w, sum.w)};
    }
  }
  return own;
}

/// The warps of a block as one, in shared memory.
struct WarpSums {
  float4 sums[kAttendWarps][kValueColumns][32];
  float largest[kAttendWarps][kRows];
  float total[kAttendWarps][kRows];
};

/// @param used  warps that saw positions: the first ones
__device__ __forceinline__ Own merge_warps(const Running& running, int32_t used, WarpSums& shared) {
  const int lane = int(threadIdx.x) % 32;
  const int warp = int(threadIdx.x) / 32;
  const int row = lane / 4;
  if (warp < used) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float total = running.total[half];
      total += __shfl_xor_sync(~0u, total, 1);
      total += __shfl_xor_sync(~0u, total, 2);
      if (lane % 4 == 0) {
        shared.largest[warp][row + 8 * half] = running.largest[half];
        shared.total[warp][row + 8 * half] = total;
      }
    }
#pragma unroll
    for (int i = 0; i < kValueColumns; ++i) {
      const float (&s)[4] = running.sums[i];
      shared.sums[warp][i][lane] = {s[0], s[1], s[2], s[3]};
    }
  }
  __syncthreads();
  Own own = {{-INFINITY, -INFINITY}, {0, 0}, {}};
  for (int32_t w = 0; w < used; ++w) {
    own.largest[0] = fmaxf(own.largest[0], shared.largest[w][row]);
    own.largest[1] = fmaxf(own.largest[1], shared.largest[w][row + 8]);
  }
  const float offset0 = softmax_offset(own.largest[0]);
  const float offset1 = softmax_offset(own.largest[1]);
#pragma unroll 2
  for (int32_t w = 0; w < used; ++w) {
    const float factor0 = std::exp(shared.largest[w][row] - offset0);
    const float factor1 = std::exp(shared.largest[w][row + 8] - offset1);
    own.total[0] = fmaf(factor0, shared.total[w][row], own.total[0]);
    own.total[1] = fmaf(factor1, shared.total[w][row + 8], own.total[1]);
#pragma unroll
    for (int i = 0; i < kOwnColumns; ++i) {
      const float4 part = shared.sums[w][warp * kOwnColumns + i][lane];
      float4& sum = own.sums[i];
      sum = {fmaf(factor0, part.x, sum.x), fmaf(factor0, part.y, sum.y), fmaf(factor1, part.z, sum.z),
             fmaf(factor1, part.w, sum.w)};
    }
  }
  return own;
}

/// Counts a block in once all of its threads are here; what they wrote, the last one's read.
/// @return to all threads: whether it is the last of `expected`, in which case the counter is zero again
__device__ __forceinline__ bool arrive_last(uint32_t* counter, int32_t expected, bool& shared_flag) {
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    shared_flag = atomicAdd(counter, 1u) + 1 == uint32_t(expected);
    if (shared_flag) *counter = 0;
  }
  __syncthreads();
  const bool last = shared_flag;
  if (last) __threadfence();
  return last;
}

}  // namespace nibblet::attention_device
