#pragma once

#include "kernels/moe/columns.cuh"
#include "kernels/moe/combine.cuh"
#include "kernels/moe/plan.h"
#include "kernels/pack/layout.h"

/// `down` of the shared expert for so many tokens that hardly a column has no use: all columns are read, once for all tokens.
namespace nibblet::moe_shared {

/// A warp has two panels of 16 rows and half of the tokens.
constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;
/// Most tiles of eight tokens of one half.
constexpr int kMostTiles = kMoeListedTokens / 16;
/// Blocks of 16 inputs that are copied at once, and how many such copies are on their way or in use.
constexpr int kAhead = 2;
constexpr int kStages = 3;
/// Bytes from one column, and from one token, to the next in shared memory: what lanes read together lies in other banks.
constexpr int kCodesStride = 64 + 16;
constexpr int kInputsStride = kBlockInputs * 2 + 16;
constexpr int kScalesOffset = kBlockInputs * kCodesStride;
constexpr int kInputsOffset = kScalesOffset + kColumnRows;
constexpr int kBlockBytes = kInputsOffset + kMoeListedTokens * kInputsStride;
constexpr int kStageBytes = kAhead * kBlockBytes;
constexpr size_t kBytes = size_t(kStages) * kStageBytes;

/// Copies one block of 16 inputs of 128 rows: codes, block scales and the activations of all tokens.
/// @param block  in global memory, from these rows' codes on
__device__ __forceinline__ void fetch(const MoePlan& plan, const uint8_t* block, int32_t chunk,
                                      int32_t number, uint8_t* to) {
  const int32_t thread = int32_t(threadIdx.x), out = plan.args.hidden;
  // A thread each: 64 of the codes, 8 of the scales.
  if (thread < 64) {
    copy_async(to + thread / 4 * kCodesStride + thread % 4 * 16,
               block + size_t(thread / 4) * column_bytes(out) + size_t(chunk) * 64 + thread % 4 * 16);
  } else if (thread < 72) {
    copy_async(to + kScalesOffset + (thread - 64) * 16,
               block + column_scales_offset(out) + size_t(chunk) * kColumnRows + (thread - 64) * 16);
  }
  // Two threads a token, from the other end.
  const int32_t piece = kThreads - 1 - thread, token = piece / 2;
  if (token < plan.args.tokens) {
    copy_async(
        to + kInputsOffset + token * kInputsStride + piece % 2 * 16,
        plan.shared + size_t(token) * size_t(plan.shared_stride) + number * kBlockInputs + piece % 2 * 8);
  }
}

/// The scale of a row, twice, from the byte `which` of two.
template <int which>
__device__ __forceinline__ uint32_t scale_of(uint32_t bytes) {
  return columns::weight_scale(columns::scale_pair(__byte_perm(bytes, 0, which == 0 ? 0x4040 : 0x4141)));
}

/// Adds a block to the sums of panels 2n and 2n + 1. Rows g and g + 8 of an mma's first operand are rows 2g and 2g + 1.
template <int kTiles>
__device__ __forceinline__ void add_block(const uint8_t* block, int32_t n, int32_t first_token,
                                          float (&sums)[2][kTiles][4]) {
  const int32_t lane = int32_t(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
  uint2 codes[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int32_t column = 2 * t + i % 2 + i / 2 * 8;
    codes[i] = *reinterpret_cast<const uint2*>(block + column * kCodesStride + 8 * g);
  }
  uint32_t bytes[4], a[2][4];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const unsigned selected = 0x4400u + 0x1111u * unsigned(n);
    bytes[2 * i] = __byte_perm(codes[2 * i].x, codes[2 * i + 1].x, selected);
    bytes[2 * i + 1] = __byte_perm(codes[2 * i].y, codes[2 * i + 1].y, selected);
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const uint32_t scales =
        *reinterpret_cast<const uint16_t*>(block + kScalesOffset + (2 * n + half) * kPanelRows + 2 * g);
    const uint32_t upper = scale_of<0>(scales), lower = scale_of<1>(scales);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t code =
          half == 0 ? columns::decode_pair<false>(bytes[i]) : columns::decode_pair<true>(bytes[i]);
      a[half][i] = multiply_bf16x2(code, i % 2 == 0 ? upper : lower);
    }
  }
  const uint8_t* const inputs = block + kInputsOffset + (first_token + g) * kInputsStride + 4 * t;
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
    const uint8_t* const from = inputs + i * 8 * kInputsStride;
    const uint32_t b0 = *reinterpret_cast<const uint32_t*>(from);
    const uint32_t b1 = *reinterpret_cast<const uint32_t*>(from + 16);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      mma_bf16(sums[half][i], a[half][0], a[half][1], a[half][2], a[half][3], b0, b1);
    }
  }
}

/// Part `split` of 128 rows for all tokens, by the kThreads threads of a block.
/// @tparam kTiles  of eight tokens in a half of those that the plan has room for
/// @param memory   kBytes of shared memory
template <int kTiles>
__device__ void multiply(const MoePlan& plan, int32_t chunk, int32_t split, uint8_t* memory) {
  __shared__ uint32_t complete[kMoeListedTokens / 32];
  const MoeArgs& args = plan.args;
  const WeightView& weight = args.shared_down;
  const int32_t thread = int32_t(threadIdx.x), warp = thread / 32, lane = thread % 32, out = args.hidden;
  const int32_t tokens = plan.step->tokens;
  const int32_t n = warp % 4, first_token = warp / 4 * kTiles * 8;
  const int32_t blocks = (weight.in + kBlockInputs - 1) / kBlockInputs;
  const int32_t first = blocks * split / plan.shared_splits, last = blocks * (split + 1) / plan.shared_splits;
  const auto fetch_some = [&](int32_t number, uint8_t* stage) {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (number + i < last) {
        fetch(plan, weight.data + size_t(number + i) * column_block_bytes(out), chunk, number + i,
              stage + i * kBlockBytes);
      }
    }
    copy_async_commit();
  };
#pragma unroll 1
  for (int i = 0; i < kStages; ++i) fetch_some(first + i * kAhead, memory + i * kStageBytes);
  float sums[2][kTiles][4] = {};
  uint8_t* stage = memory;
#pragma unroll 1
  for (int32_t number = first; number < last; number += kAhead) {
    copy_async_wait<kStages - 1>();
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (number + i < last) add_block<kTiles>(stage + i * kBlockBytes, n, first_token, sums);
    }
    __syncthreads();
    fetch_some(number + kStages * kAhead, stage);
    stage = stage == memory + (kStages - 1) * kStageBytes ? memory : stage + kStageBytes;
  }
  copy_async_wait<0>();

  const int32_t g = lane / 4, t = lane % 4;
  const float* const bias = split == 0 ? args.shared_down_bias : nullptr;
  const size_t number = size_t(args.top_k) * size_t(plan.routed_splits) + size_t(split);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int32_t row = chunk * kColumnRows + (2 * n + half) * kPanelRows + 2 * g + j / 2;
        const int32_t token = first_token + i * 8 + 2 * t + j % 2;
        if (row >= out || token >= tokens) continue;
        plan.outputs[(size_t(token) * size_t(plan.parts) + number) * size_t(out) + size_t(row)] =
            sums[half][i][j] * columns::kWeightUnit * weight.row_scales[row] +
            (bias == nullptr ? 0.0f : bias[row]);
      }
    }
  }
  __syncthreads();
  if (thread < kMoeListedTokens) {
    const int32_t chunks = (out + kColumnRows - 1) / kColumnRows;
    uint32_t* const arrivals = plan.arrivals + size_t(thread) * size_t(chunks) + size_t(chunk);
    const bool is_last = thread < tokens && arrive_on(arrivals, 1) + 1 == uint32_t(plan.parts);
    if (is_last) *arrivals = 0;
    const uint32_t votes = __ballot_sync(0xffffffffu, is_last);
    if (lane == 0) complete[warp] = votes;
  }
  __syncthreads();
#pragma unroll 1
  for (int32_t token = 0; token < tokens; ++token) {
    if ((complete[token / 32] >> token % 32 & 1) == 0 || thread >= kColumnRows) continue;
    moe_combine_row(plan, size_t(token), chunk * kColumnRows + thread);
  }
}

}  // namespace nibblet::moe_shared
