#pragma once

#include "kernels/attention/tile.cuh"
#include "kernels/cuda/arrive.h"

/// How sums over parts of a context become one, always in the order of the parts.
namespace nibblet::attention_device {

constexpr int kAttendThreads = 256;
constexpr int kAttendWarps = kAttendThreads / 32;
/// Columns of the sums that a thread holds when a block has merged its warps: column 2·warp + i.
constexpr int kOwnColumns = kValueColumns / kAttendWarps;

/// 16 query rows over some positions. `sums` lie as the lanes of a warp hold them (tile.cuh).
struct Partial {
  float4 sums[kValueColumns][32];
  float2 softmax[kRows];  ///< maximum and total
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
      to->softmax[lane / 4 + 8 * half] = {own.largest[half], own.total[half]};
    }
  }
}

/// Partials from[0] to from[count - 1], by all threads of a block. All loads of a kind are under way at once.
template <int kMost>
__device__ __forceinline__ Own merge_partials(const Partial* from, int32_t count) {
  const int lane = int(threadIdx.x) % 32;
  const int warp = int(threadIdx.x) / 32;
  const int row = lane / 4;
  float2 upper[kMost], lower[kMost];
#pragma unroll
  for (int p = 0; p < kMost; ++p) {
    upper[p] = lower[p] = {-INFINITY, 0};
    if (p < count) {
      upper[p] = from[p].softmax[row];
      lower[p] = from[p].softmax[row + 8];
    }
  }
  Own own = {{-INFINITY, -INFINITY}, {0, 0}, {}};
#pragma unroll
  for (int p = 0; p < kMost; ++p) {
    own.largest[0] = fmaxf(own.largest[0], upper[p].x);
    own.largest[1] = fmaxf(own.largest[1], lower[p].x);
  }
  const float offset0 = softmax_offset(own.largest[0]);
  const float offset1 = softmax_offset(own.largest[1]);
  constexpr int kTogether = 8;
#pragma unroll
  for (int first = 0; first < kMost; first += kTogether) {
    if (first >= count) break;
    float4 parts[kTogether][kOwnColumns];
#pragma unroll
    for (int p = 0; p < kTogether; ++p) {
#pragma unroll
      for (int i = 0; i < kOwnColumns; ++i) {
        parts[p][i] = {0, 0, 0, 0};
        if (first + p < count) parts[p][i] = from[first + p].sums[warp * kOwnColumns + i][lane];
      }
    }
#pragma unroll
    for (int p = 0; p < kTogether; ++p) {
      const float factor0 = std::exp(upper[first + p].x - offset0);
      const float factor1 = std::exp(lower[first + p].x - offset1);
      own.total[0] = fmaf(factor0, upper[first + p].y, own.total[0]);
      own.total[1] = fmaf(factor1, lower[first + p].y, own.total[1]);
#pragma unroll
      for (int i = 0; i < kOwnColumns; ++i) {
        const float4 part = parts[p][i];
        float4& sum = own.sums[i];
        sum = {fmaf(factor0, part.x, sum.x), fmaf(factor0, part.y, sum.y), fmaf(factor1, part.z, sum.z),
               fmaf(factor1, part.w, sum.w)};
      }
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

}  // namespace nibblet::attention_device
