#pragma once

#include "kernels/cuda/warp.h"
#include "kernels/numerics/bf16.h"
#include "kernels/numerics/dtype.h"

/// The prologue of products: a row of activations becomes x̂, normed in float32 and rounded to bf16, in the order that a
/// kernel reads it.
namespace nibblet {

/// Where rows come from and what turns them into x̂ (linear.h).
struct Prologue {
  const void* x;  ///< f32 or bf16
  DType x_type;
  int64_t x_stride;
  const float* norm;  ///< [in] or null
  float epsilon;
  int32_t in;
};

/// Inputs that a thread handles at a time.
constexpr int kPieceInputs = 8;

/// The sum over the block, the same in every thread, in an order that depends on the size of the block alone. All threads
/// take part. @param scratch  32 floats of shared memory, not used for anything else around
__device__ __forceinline__ float block_sum(float value, float* scratch) {
  value = warp_sum(value);
  const unsigned lane = threadIdx.x % 32;
  if (lane == 0) scratch[threadIdx.x / 32] = value;
  __syncthreads();
  return warp_sum(lane < blockDim.x / 32 ? scratch[lane] : 0.0f);
}

__device__ __forceinline__ void load_vector(const float* from, float (&values)[kPieceInputs]) {
  const float4 low = reinterpret_cast<const float4*>(from)[0],
               high = reinterpret_cast<const float4*>(from)[1];
  values[0] = low.x, values[1] = low.y, values[2] = low.z, values[3] = low.w;
  values[4] = high.x, values[5] = high.y, values[6] = high.z, values[7] = high.w;
}
__device__ __forceinline__ void load_vector(const uint16_t* from, float (&values)[kPieceInputs]) {
  const uint4 words = *reinterpret_cast<const uint4*>(from);
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const uint32_t pair = i == 0 ? words.x : i == 1 ? words.y : i == 2 ? words.z : words.w;
    values[2 * i] = __uint_as_float(pair << 16);
    values[2 * i + 1] = __uint_as_float(pair & 0xffff0000);
  }
}
__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(uint16_t value) { return bf16_to_float(value); }

/// values = from[k .. k + 8), zeros from `in` on, an element at a time.
template <class T>
__device__ __forceinline__ void load_scattered(const T* from, int32_t k, int32_t in,
                                               float (&values)[kPieceInputs]) {
  // In local memory: rows of odd lengths are rare, and unrolled this would be most of a kernel's code.
  float piece[kPieceInputs];
#pragma unroll 1
  for (int i = 0; i < kPieceInputs; i++) piece[i] = k + i < in ? to_float(from[k + i]) : 0.0f;
#pragma unroll
  for (int i = 0; i < kPieceInputs; i++) values[i] = piece[i];
}

/// `Pieces` pieces of eight, `step` inputs apart: values = from[k .. k + 8), zeros from `in` on. The loads are all under
/// way before the first is waited for, in one of two ways for the whole row.
template <int Pieces, class T>
__device__ __forceinline__ void load_pieces(const T* from, int32_t k, int32_t step, int32_t in,
                                            float (&values)[Pieces][kPieceInputs]) {
  const bool aligned = (reinterpret_cast<uintptr_t>(from) % 16 | uint32_t(in) % kPieceInputs) == 0;
#pragma unroll
  for (int p = 0; p < Pieces; p++) {
#pragma unroll
    for (int i = 0; i < kPieceInputs; i++) values[p][i] = 0;
    if (k + p * step >= in) continue;
    if (aligned) {
      load_vector(from + k + p * step, values[p]);
    } else {
      load_scattered(from, k + p * step, in, values[p]);
    }
  }
}

/// One row, staged by a whole block. The first `Kept` pieces of each thread stay in registers between the two passes that
/// a norm needs; the rest of a longer row is read twice.
template <int Kept>
class RowStage {
 public:
  /// Norm weights never change: this may run before the dependency wait.
  __device__ __forceinline__ void prefetch(const Prologue& prologue) { load_norm(prologue, start(), norm_); }

  /// Calls store(k, words) for every piece [k, k + 8) below `padded`, a multiple of 8, with its eight x̂ · factor as bf16
  /// pairs; zeros from `in` on. `factor` is a power of two.
  template <class Store>
  __device__ __forceinline__ void stage(const Prologue& prologue, int64_t token, float factor, int32_t padded,
                                        float* scratch, const Store& store) {
    float x[Kept][kPieceInputs];
    load<Kept>(prologue, token, start(), x);
    float scale = factor;
    if (prologue.norm != nullptr) {
      float squares = 0;
#pragma unroll
      for (int i = 0; i < Kept; i++) squares += sum_of_squares(x[i]);
#pragma unroll 1
      for (int32_t k = start() + Kept * step(); k < prologue.in; k += step()) {
        float piece[1][kPieceInputs];
        load<1>(prologue, token, k, piece);
        squares += sum_of_squares(piece[0]);
      }
      const float mean = block_sum(squares, scratch) / float(prologue.in);
      scale = 1.0f / sqrtf(mean + prologue.epsilon) * factor;
    }
#pragma unroll
    for (int i = 0; i < Kept; i++) {
      const int32_t k = start() + i * step();
      if (k < padded) finish(k, x[i], norm_[i], scale, store);
    }
#pragma unroll 1
    for (int32_t k = start() + Kept * step(); k < padded; k += step()) {
      float piece[1][kPieceInputs], norm[1][kPieceInputs];
      load<1>(prologue, token, k, piece);
      load_norm(prologue, k, norm);
      finish(k, piece[0], norm[0], scale, store);
    }
  }

 private:
  static __device__ __forceinline__ int32_t step() { return int32_t(blockDim.x) * kPieceInputs; }
  static __device__ __forceinline__ int32_t start() { return int32_t(threadIdx.x) * kPieceInputs; }

  template <int Pieces>
  static __device__ __forceinline__ void load(const Prologue& prologue, int64_t token, int32_t k,
                                              float (&values)[Pieces][kPieceInputs]) {
    const int64_t at = token * prologue.x_stride;
    if (prologue.x_type == DType::bf16) {
      load_pieces<Pieces>(static_cast<const uint16_t*>(prologue.x) + at, k, step(), prologue.in, values);
    } else {
      load_pieces<Pieces>(static_cast<const float*>(prologue.x) + at, k, step(), prologue.in, values);
    }
  }

  template <int Pieces>
  static __device__ __forceinline__ void load_norm(const Prologue& prologue, int32_t k,
                                                   float (&norm)[Pieces][kPieceInputs]) {
    if (prologue.norm != nullptr) return load_pieces<Pieces>(prologue.norm, k, step(), prologue.in, norm);
#pragma unroll
    for (int p = 0; p < Pieces; p++) {
#pragma unroll
      for (int i = 0; i < kPieceInputs; i++) norm[p][i] = 1;
    }
  }

  static __device__ __forceinline__ float sum_of_squares(const float (&values)[kPieceInputs]) {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kPieceInputs; i++) sum += values[i] * values[i];
    return sum;
  }

  template <class Store>
  static __device__ __forceinline__ void finish(int32_t k, float (&values)[kPieceInputs],
                                                const float (&norm)[kPieceInputs], float scale,
                                                const Store& store) {
#pragma unroll
    for (int i = 0; i < kPieceInputs; i++) values[i] = values[i] * scale * norm[i];
    store(k, make_uint4(
                 bf16_pair_from_floats(values[0], values[1]), bf16_pair_from_floats(values[2], values[3]),
                 bf16_pair_from_floats(values[4], values[5]), bf16_pair_from_floats(values[6], values[7])));
  }

  float norm_[Kept][kPieceInputs];
};

}  // namespace nibblet
