#pragma once

#include "kernels/moe/columns.cuh"
#include "kernels/moe/plan.h"
#include "kernels/pack/layout.h"

/// How a block of `down` for one token shares out its part and sums it.
namespace nibblet::moe_down_one {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;
static_assert(kThreads == kColumnRows && kThreads == kMoeListBlocks);
/// Four lanes hold the 128 rows of a piece of a column: 32 each.
constexpr int kGroups = kThreads / 4;
/// Columns that a group has under way.
constexpr int kColumns = 4;

/// Which matrix a block multiplies with which activations.
struct Part {
  WeightView weight;
  const uint16_t* hidden;
  const float* bias;  ///< null too where another part of the same product adds it
  bool routed;
  size_t entry;   ///< of a routed part
  int32_t first;  ///< blocks of 16 inputs
  int32_t last;

  __device__ Part(const MoePlan& plan, size_t token, int32_t part) {
    const MoeArgs& args = plan.args;
    const int32_t routed_parts = args.top_k * plan.routed_splits;
    int32_t split, splits;
    routed = part < routed_parts;
    if (routed) {
      entry = token * size_t(args.top_k) + size_t(part / plan.routed_splits);
      split = part % plan.routed_splits;
      splits = plan.routed_splits;
      weight = args.down;
      hidden = plan.hidden + entry * size_t(plan.width_stride);
      bias = args.down_bias;
    } else {
      entry = 0;
      split = part - routed_parts;
      splits = plan.shared_splits;
      weight = args.shared_down;
      hidden = plan.shared + token * size_t(plan.shared_stride);
      bias = args.shared_down_bias;
    }
    const int32_t blocks = (weight.in + kBlockInputs - 1) / kBlockInputs;
    first = blocks * split / splits;
    last = blocks * (split + 1) / splits;
    if (split != 0) bias = nullptr;
  }
};

__device__ inline float low_half(uint32_t pair) { return __uint_as_float(pair << 16); }
__device__ inline float high_half(uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); }

/// Adds rows 16 n + r and 16 (n + 4) + r of a column. @param low, high  their block scales
template <int n>
__device__ void add_rows(const uint4& codes, uint32_t low, uint32_t high, float activation,
                         float (&sums)[32]) {
  const uint32_t words[4] = {codes.x, codes.y, codes.z, codes.w};
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const uint32_t bytes = __byte_perm(low, high, unsigned(j * 0x11 + (j + 4) * 0x1100));
    const uint32_t scale = multiply_bf16x2(columns::scale_pair(bytes), columns::kScaleUnit);
    const uint32_t weight = multiply_bf16x2(columns::decode<n>(words[j]), scale);
    sums[n * 4 + j] = fmaf(low_half(weight), activation, sums[n * 4 + j]);
    sums[n * 4 + 16 + j] = fmaf(high_half(weight), activation, sums[n * 4 + 16 + j]);
  }
}

/// Adds up the groups' sums of a warp. Lane 4 g + q ends with rows 16 g + 4 q + j, j < 4, in sums[j].
template <int half = 16>
__device__ void add_groups(float (&sums)[32]) {
  const bool upper = (threadIdx.x & unsigned(half)) != 0;
#pragma unroll
  for (int i = 0; i < half; ++i) {
    const float away = upper ? sums[i] : sums[i + half];
    const float kept = upper ? sums[i + half] : sums[i];
    sums[i] = kept + __shfl_xor_sync(0xffffffffu, away, half);
  }
  if constexpr (half > 4) add_groups<half / 2>(sums);
}

}  // namespace nibblet::moe_down_one
