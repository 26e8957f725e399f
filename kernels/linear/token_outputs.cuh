#pragma once

#include "kernels/linear/compact.cuh"
#include "kernels/linear/plan.cuh"
#include "kernels/linear/token_inputs.cuh"

/// From the sums of warps and blocks to outputs of several tokens.
///
/// What is read here is waited for with nothing else to do, tile after tile: constants of rows are fetched before the
/// dependency wait, and all else is asked for before the first of it is used.
namespace nibblet::fragments {

/// Sums in shared memory: 8 tokens of 16 rows, padded so that a warp's writes meet 32 banks.
constexpr int kTokenFloats = 20;
constexpr int kTileFloats = 8 * kTokenFloats;

/// What an output row needs beside its sums.
template <Format format>
struct OutputRow {
  OutputConstants constants;
  RowCodes<format> codes;
  __device__ __forceinline__ OutputRow(const LinearTask& task, int32_t n)
      : constants(task.epilogue, n), codes(task, n) {}
};

/// What a thread makes of a row tile and the tokens of a block: one row, and every kStep-th token.
template <Format format, int kTokenTiles>
struct TileOutputs {
  static constexpr int kTokens = kTokenTiles * 8, kStep = kTokensWarps * 32 / kFragmentRows;
  static constexpr int kCount = kTokens > kStep ? kTokens / kStep : 1;
  /// Floats of a tile's sums in memory.
  static constexpr int kPartFloats = kTokens * kFragmentRows;

  int32_t live;  ///< tokens that are wanted, at most kTokens
  float sums[kCount] = {};

  __device__ __forceinline__ explicit TileOutputs(int32_t rows) : live(rows < kTokens ? rows : kTokens) {}
  static __device__ __forceinline__ int32_t row() { return int32_t(threadIdx.x) % kFragmentRows; }
  static __device__ __forceinline__ int32_t token(int j) {
    return int32_t(threadIdx.x) / kFragmentRows + j * kStep;
  }

  /// @param from  the sums of `splits` warps in shared memory
  __device__ __forceinline__ void add_warps(const float* from, int splits) {
    for (int s = 0; s < splits; s++) {
#pragma unroll
      for (int j = 0; j < kCount; j++) {
        if (token(j) >= live) continue;
        sums[j] += from[(s * kTokenTiles + token(j) / 8) * kTileFloats + token(j) % 8 * kTokenFloats + row()];
      }
    }
  }

  __device__ __forceinline__ void store_part(float* to) const {
#pragma unroll
    for (int j = 0; j < kCount; j++) {
      if (token(j) < live) to[token(j) * kFragmentRows + row()] = sums[j];
    }
  }
  /// @param from  the first of `cuts` parts, `stride` floats apart, which other blocks wrote
  __device__ __forceinline__ void add_parts(const float* from, int cuts, int32_t stride) {
    float parts[kTokensMostCuts][kCount] = {};
#pragma unroll
    for (int c = 0; c < kTokensMostCuts; c++) {
#pragma unroll
      for (int j = 0; j < kCount; j++) {
        if (c < cuts && token(j) < live)
          parts[c][j] = __ldcg(from + c * stride + token(j) * kFragmentRows + row());
      }
    }
#pragma unroll
    for (int c = 0; c < kTokensMostCuts; c++) {
#pragma unroll
      for (int j = 0; j < kCount; j++) sums[j] += parts[c][j];
    }
  }

  /// @param first_row  of the block  @param tile  row tile of the weight
  __device__ __forceinline__ void write(const LinearTask& task,
                                        const TokenInputs<format, kTokenTiles>& inputs, int32_t first_row,
                                        int32_t tile, const OutputRow<format>& of_row) const {
    const Epilogue& epilogue = task.epilogue;
    const int32_t n = tile * kFragmentRows + row();
    if (n >= epilogue.out) return;
    const int64_t at = (first_row + token(0)) * epilogue.y_stride + n, step = kStep * epilogue.y_stride;
    float* y = static_cast<float*>(epilogue.y) + at;
    float before[kCount] = {}, values[kCount] = {};
    if (epilogue.add) {
#pragma unroll
      for (int j = 0; j < kCount; j++) {
        if (token(j) < live) before[j] = y[j * step];
      }
    }
    // For tokens that are not wanted the last one's: a branch a token would wait for each by itself.
    of_row.codes.add_exceptions(task, values, [&](int j, int32_t k) {
      const int32_t last = live - 1, t = token(j) < last ? token(j) : last;
      return bf16_to_float(inputs.element(task.prologue, t, k));
    });
#pragma unroll
    for (int j = 0; j < kCount; j++) {
      const float sum = of_row.codes.whole(sums[j], kTokensScale<format>, values[j]);
      values[j] = output_value(epilogue, of_row.constants, sum);
    }
    // One branch for all of them: code that runs once costs more than what it does.
    if (epilogue.y_type == DType::bf16) {
      uint16_t* y16 = static_cast<uint16_t*>(epilogue.y) + at;
#pragma unroll
      for (int j = 0; j < kCount; j++) {
        if (token(j) < live) y16[j * step] = bf16_from_float(values[j]);
      }
    } else {
#pragma unroll
      for (int j = 0; j < kCount; j++) {
        if (token(j) < live) y[j * step] = epilogue.add ? before[j] + values[j] : values[j];
      }
    }
  }
};

}  // namespace nibblet::fragments
