#pragma once

#include "kernels/cuda/device.h"
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
  for (int width = 16; width > 0; width /= 2) value += __shfl_xor_sync(0xffffffffu, value, width);
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
  __syncthreads();
  float sum = 0;
  for (unsigned warp = 0; warp < blockDim.x / 32; warp++) sum += scratch[warp];
  return sum;
}

__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
  return bf16_from_float(low) | uint32_t{bf16_from_float(high)} << 16;
}

/// values = from[k .. k + 8), zeros from `in` on.
__device__ __forceinline__ void load_piece(const float* from, int32_t k, int32_t in,
                                           float (&values)[kPieceInputs]) {
  if (k + kPieceInputs <= in && reinterpret_cast<uintptr_t>(from + k) % 16 == 0) {
    const float4 low = *reinterpret_cast<const float4*>(from + k);
    const float4 high = *reinterpret_cast<const float4*>(from + k + 4);
    values[0] = low.x, values[1] = low.y, values[2] = low.z, values[3] = low.w;
    values[4] = high.x, values[5] = high.y, values[6] = high.z, values[7] = high.w;
  } else {
#pragma unroll
    for (int i = 0; i < kPieceInputs; i++) values[i] = k + i < in ? from[k + i] : 0.0f;
  }
}

__device__ __forceinline__ void load_piece(const uint16_t* from, int32_t k, int32_t in,
                                           float (&values)[kPieceInputs]) {
  if (k + kPieceInputs <= in && reinterpret_cast<uintptr_t>(from + k) % 16 == 0) {
    const uint4 words = *reinterpret_cast<const uint4*>(from + k);
    const uint32_t pairs[] = {words.x, words.y, words.z, words.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
      values[2 * i] = __uint_as_float(pairs[i] << 16);
      values[2 * i + 1] = __uint_as_float(pairs[i] & 0xffff0000);
    }
  } else {
#pragma unroll
    for (int i = 0; i < kPieceInputs; i++) values[i] = k + i < in ? bf16_to_float(from[k + i]) : 0.0f;
  }
}

/// One row, staged by a whole block. The first `Kept` pieces of each thread stay in registers between the two passes that
/// a norm needs; the rest of a longer row is read twice.
template <int Kept>
class RowStage {
 public:
  /// Norm weights never change: this may run before the dependency wait.
  __device__ __forceinline__ void prefetch(const Prologue& prologue) {
    if (prologue.norm == nullptr) return;
#pragma unroll
    for (int i = 0; i < Kept; i++) load_piece(prologue.norm, piece_start(i), prologue.in, norm_[i]);
  }

  /// Calls store(k, words) for every piece [k, k + 8) below `padded`, a multiple of 8, with its eight x̂ · factor as bf16
  /// pairs; zeros from `in` on. `factor` is a power of two.
  template <class Store>
  __device__ __forceinline__ void stage(const Prologue& prologue, int64_t token, float factor, int32_t padded,
                                        float* scratch, const Store& store) {
    float x[Kept][kPieceInputs];
    float squares = 0;
#pragma unroll
    for (int i = 0; i < Kept; i++) {
      load(prologue, token, piece_start(i), x[i]);
      squares += sum_of_squares(x[i]);
    }
    float scale = factor;
    if (prologue.norm != nullptr) {
      for (int32_t k = piece_start(Kept); k < prologue.in; k += step()) {
        float piece[kPieceInputs];
        load(prologue, token, k, piece);
        squares += sum_of_squares(piece);
      }
      const float mean = block_sum(squares, scratch) / float(prologue.in);
      scale = 1.0f / sqrtf(mean + prologue.epsilon) * factor;
    }
#pragma unroll
    for (int i = 0; i < Kept; i++) {
      if (piece_start(i) < padded) finish(prologue, piece_start(i), x[i], norm_[i], scale, store);
    }
    for (int32_t k = piece_start(Kept); k < padded; k += step()) {
      float piece[kPieceInputs], norm[kPieceInputs];
      load(prologue, token, k, piece);
      if (prologue.norm != nullptr) load_piece(prologue.norm, k, prologue.in, norm);
      finish(prologue, k, piece, norm, scale, store);
    }
  }

 private:
  static __device__ __forceinline__ int32_t step() { return int32_t(blockDim.x) * kPieceInputs; }
  static __device__ __forceinline__ int32_t piece_start(int i) {
    return int32_t(threadIdx.x + unsigned(i) * blockDim.x) * kPieceInputs;
  }

  static __device__ __forceinline__ void load(const Prologue& prologue, int64_t token, int32_t k,
                                              float (&values)[kPieceInputs]) {
    const int64_t start = token * prologue.x_stride;
    if (prologue.x_type == DType::bf16) {
      load_piece(static_cast<const uint16_t*>(prologue.x) + start, k, prologue.in, values);
    } else {
      load_piece(static_cast<const float*>(prologue.x) + start, k, prologue.in, values);
    }
  }

  static __device__ __forceinline__ float sum_of_squares(const float (&values)[kPieceInputs]) {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kPieceInputs; i++) sum += values[i] * values[i];
    return sum;
  }

  template <class Store>
  static __device__ __forceinline__ void finish(const Prologue& prologue, int32_t k,
                                                float (&values)[kPieceInputs],
                                                const float (&norm)[kPieceInputs], float scale,
                                                const Store& store) {
#pragma unroll
    for (int i = 0; i < kPieceInputs; i++) {
      values[i] *= scale;
      if (prologue.norm != nullptr) values[i] *= norm[i];
    }
    store(k, make_uint4(pack_bf16(values[0], values[1]), pack_bf16(values[2], values[3]),
                        pack_bf16(values[4], values[5]), pack_bf16(values[6], values[7])));
  }

  float norm_[Kept][kPieceInputs];
};

}  // namespace nibblet
