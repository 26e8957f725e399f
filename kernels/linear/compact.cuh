#pragma once

#include "kernels/linear/fragments.cuh"
#include "kernels/linear/task.cuh"

/// What an output needs beside the sum over its codes: for compact_bf16 the power of two of its row, and the exceptions of the
/// row. Others have one factor for all rows.
namespace nibblet::fragments {

template <Format format>
struct RowCodes {
  __device__ __forceinline__ RowCodes(const LinearTask&, int32_t) {}
  /// @param input  input(k): x̂ of input k, float32
  template <class Input>
  __device__ __forceinline__ float exceptions(const LinearTask&, const Input&) const {
    return 0;
  }
  /// Of several tokens. @param input  input(j, k): x̂ of input k of token j
  template <int kTokens, class Input>
  __device__ __forceinline__ void add_exceptions(const LinearTask&, float (&)[kTokens], const Input&) const {}
  /// The sum over the elements of the row. @param factor  kOneTokenScale or kTokensScale
  __device__ __forceinline__ float whole(float sum, float factor, float) const { return sum * factor; }
};

template <>
struct RowCodes<Format::compact_bf16> {
  CompactRow row = {};

  /// Reads constants only.
  __device__ __forceinline__ RowCodes(const LinearTask& task, int32_t n) {
    if (n >= task.epilogue.out) return;
    const uint4 words = reinterpret_cast<const uint4*>(rows_of(task))[n];
    row = {words.x, words.y, {words.z, words.w}};
  }

  /// In the order of the inputs.
  template <class Input>
  __device__ __forceinline__ float exceptions(const LinearTask& task, const Input& input) const {
    float sum = 0;
    const uint32_t count = row.count();
    if (count > 0) sum = term(row.first[0], input);
    if (count > 1) sum += term(row.first[1], input);
    if (count > 2) {
      const uint32_t* from = list_of(task) + row.more;
      // Rare: little code.
#pragma unroll 1
      for (uint32_t i = 2; i < count; i++) sum += term(from[i - 2], input);
    }
    return sum;
  }
  /// An exception is multiplied with all tokens at once: their inputs have to be waited for.
  template <int kTokens, class Input>
  __device__ __forceinline__ void add_exceptions(const LinearTask& task, float (&sums)[kTokens],
                                                 const Input& input) const {
    const uint32_t count = row.count();
#pragma unroll 1
    for (uint32_t i = 0; i < count; i++) {
      const uint32_t exception = i == 0   ? row.first[0]
                                 : i == 1 ? row.first[1]
                                          : list_of(task)[row.more + i - 2];
      float inputs[kTokens];
#pragma unroll
      for (int j = 0; j < kTokens; j++) inputs[j] = input(j, int32_t(exception & 0xffff));
#pragma unroll
      for (int j = 0; j < kTokens; j++) sums[j] += bf16_to_float(uint16_t(exception >> 16)) * inputs[j];
    }
  }
  __device__ __forceinline__ float whole(float sum, float factor, float exceptions) const {
    return sum * (factor * __uint_as_float((row.base() + kBaseBias) << 23)) + exceptions;
  }

 private:
  /// 2^(base - 63): a normal float32 for every base.
  static constexpr uint32_t kBaseBias = 127 - 63;

  /// Behind the tiles (compact.h).
  static __device__ __forceinline__ const uint8_t* rows_of(const LinearTask& task) {
    return task.weight + size_t(task.tiles) * size_t(task.units) * fragment_unit_bytes(Format::compact_bf16);
  }
  static __device__ __forceinline__ const uint32_t* list_of(const LinearTask& task) {
    const uint8_t* list = rows_of(task) + size_t(task.tiles) * kFragmentRows * sizeof(CompactRow);
    return reinterpret_cast<const uint32_t*>(list);
  }

  template <class Input>
  static __device__ __forceinline__ float term(uint32_t exception, const Input& input) {
    return bf16_to_float(uint16_t(exception >> 16)) * input(int32_t(exception & 0xffff));
  }
};

}  // namespace nibblet::fragments
