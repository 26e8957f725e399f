#pragma once

#include "kernels/cuda/device.h"
#include "kernels/mamba/shape.h"
#include "kernels/numerics/element.h"

/// What the kernels of the Mamba mixer share. Every sum has one order, whatever kernel computes it: a sequence gives the
/// same bits in one step or in many.
namespace nibblet::mamba_device {

constexpr int32_t kMaxTaps = 8;
/// State size of the kernels for the known shape (mamba_cuda_is_fast): four floats a lane.
constexpr int32_t kFastState = 128;
constexpr int32_t kFastTaps = 4;

/// With kRows > 0 what the compiler may know of the shape; with 0 nothing.
template <int kRows>
__device__ __forceinline__ MambaArgs known(MambaArgs args) {
  if constexpr (kRows > 0) {
    args.type = DType::bf16;
    args.kernel = kFastTaps;
    args.state = kFastState;
  }
  return args;
}

/// Input of the convolution at `time`, counted from the first token of this step; older ones are in the state.
__device__ __forceinline__ float conv_input(const MambaArgs& args, const MambaShape& shape,
                                            const Sequence& sequence, int32_t channel, int32_t time) {
  if (time >= 0) {
    return read_element(args.projected, args.type, shape.channel_row(sequence.first + time) + channel);
  }
  if (sequence.position == 0) return 0;
  const int32_t history = args.kernel - 1;
  const size_t state = (size_t(sequence.slot) * shape.channels + channel) * history;
  return read_element(args.conv_state, args.type, state + history + time);
}

/// The convolution of one channel. Taps that the kernel lacks have weight 0 and see inputs of 0.
template <int kTaps>
class Convolution {
 public:
  __device__ __forceinline__ void load(const MambaArgs& args, int32_t channel) {
    bias_ = args.conv_bias == nullptr ? 0 : args.conv_bias[channel];
    const float* from = args.conv_weight + size_t(channel) * args.kernel;
    if constexpr (kTaps == kFastTaps) {
      const float4 four = *reinterpret_cast<const float4*>(from);
      weights_[0] = four.x, weights_[1] = four.y, weights_[2] = four.z, weights_[3] = four.w;
    } else {
#pragma unroll
      for (int tap = 0; tap < kTaps; ++tap) {
        const int own = tap - (kTaps - args.kernel);
        weights_[tap] = own >= 0 ? from[own] : 0;
      }
    }
  }

  /// The inputs before time 0, the last of them in window[kTaps - 2].
  static __device__ __forceinline__ void load_history(const MambaArgs& args, const MambaShape& shape,
                                                      const Sequence& sequence, int32_t channel,
                                                      float (&window)[kTaps]) {
#pragma unroll
    for (int i = 0; i < kTaps - 1; ++i) {
      const int back = kTaps - 1 - i;
      window[i] = back < args.kernel ? conv_input(args, shape, sequence, channel, -back) : 0;
    }
  }

  /// u of a token, whose input moves into the window.
  __device__ __forceinline__ float next(float (&window)[kTaps], float input) const {
    window[kTaps - 1] = input;
    const float u = silu(sum_of(window));
#pragma unroll
    for (int i = 0; i < kTaps - 1; ++i) window[i] = window[i + 1];
    return u;
  }

  /// u of `count` tokens from `first` on (a time), to to[0], to[stride], …
  __device__ __forceinline__ void run(const MambaArgs& args, const MambaShape& shape,
                                      const Sequence& sequence, int32_t channel, int32_t first, int32_t count,
                                      float* to, int32_t stride) const {
    float window[kTaps];
#pragma unroll
    for (int i = 0; i < kTaps - 1; ++i) {
      const int back = kTaps - 1 - i;
      window[i] = back < args.kernel ? conv_input(args, shape, sequence, channel, first - back) : 0;
    }
#pragma unroll 1
    for (int32_t t = 0; t < count; ++t) {
      window[kTaps - 1] = conv_input(args, shape, sequence, channel, first + t);
      to[size_t(t) * stride] = silu(sum_of(window));
#pragma unroll
      for (int i = 0; i < kTaps - 1; ++i) window[i] = window[i + 1];
    }
  }

 private:
  float weights_[kTaps] = {};
  float bias_ = 0;

  __device__ __forceinline__ float sum_of(const float (&window)[kTaps]) const {
    float sum = bias_;
#pragma unroll
    for (int tap = 0; tap < kTaps; ++tap) sum = fmaf(weights_[tap], window[tap], sum);
    return sum;
  }
};

template <int kRows>
using ConvolutionOf = Convolution<(kRows > 0 ? kFastTaps : kMaxTaps)>;

/// Leaves the last inputs of the step in the convolution state, for whoever read that state already.
template <int kTaps>
__device__ __forceinline__ void store_history(const MambaArgs& args, const MambaShape& shape,
                                              const Sequence& sequence, int32_t channel) {
  const int32_t history = args.kernel - 1;
  float kept[kTaps - 1];
#pragma unroll
  for (int i = 0; i < kTaps - 1; ++i) {
    if (i < history) kept[i] = conv_input(args, shape, sequence, channel, sequence.count - history + i);
  }
  const size_t state = (size_t(sequence.slot) * shape.channels + channel) * history;
#pragma unroll
  for (int i = 0; i < kTaps - 1; ++i) {
    if (i < history) write_element(args.conv_state, args.type, state + i, kept[i]);
  }
}

/// Leaves in the convolution state what Convolution::next left in the window.
template <int kTaps>
__device__ __forceinline__ void store_window(const MambaArgs& args, const MambaShape& shape, int32_t slot,
                                             int32_t channel, const float (&window)[kTaps]) {
  const size_t state = (size_t(slot) * shape.channels + channel) * (kTaps - 1);
#pragma unroll
  for (int i = 0; i < kTaps - 1; ++i) write_element(args.conv_state, args.type, state + i, window[i]);
}

/// What a head's steps need of its weights.
struct HeadStep {
  float dt_bias;
  float rate;

  __device__ __forceinline__ HeadStep(const MambaArgs& args, int32_t head)
      : dt_bias(args.dt_bias[head]), rate(-std::exp(args.a_log[head])) {}
  /// x: dt of a token whose input is `raw`; y: what the state decays by.
  __device__ __forceinline__ float2 size(float raw) const {
    const float dt = softplus(raw + dt_bias);
    return {dt, std::exp(rate * dt)};
  }
};
__device__ __forceinline__ float2 step_size(const MambaArgs& args, const MambaShape& shape, int32_t token,
                                            int32_t head) {
  return HeadStep(args, head).size(read_element(args.projected, args.type, shape.dt_row(token) + head));
}

/// Sums kRows values of each lane over the warp. @return the sum of value lane / (32 / kRows), added in the order of a
/// butterfly from 16 lanes apart down to neighbours
template <int kRows>
__device__ __forceinline__ float sum_rows(float (&values)[kRows], int lane) {
  int apart = 16;
#pragma unroll
  for (int half = kRows / 2; half > 0; half /= 2, apart /= 2) {
    const bool upper = (lane & apart) != 0;
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const float sent = upper ? values[i] : values[i + half];
      const float kept = upper ? values[i + half] : values[i];
      values[i] = kept + __shfl_xor_sync(~0u, sent, apart);
    }
  }
  for (; apart > 0; apart /= 2) values[0] += __shfl_xor_sync(~0u, values[0], apart);
  return values[0];
}

__device__ __forceinline__ float advance(float state, float decay, float input, float b) {
  return fmaf(decay, state, input * b);
}

/// One token for kRows rows of a head's state, spread over the lanes of a warp.
/// @return S · C of row lane / (32 / kRows)
template <int kRows>
__device__ __forceinline__ float scan_token(float4 (&state)[kRows], float2 step, const float (&x)[kRows],
                                            float4 b, float4 c, int lane) {
  float sums[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const float input = step.x * x[r];
    float4& s = state[r];
    s = {advance(s.x, step.y, input, b.x), advance(s.y, step.y, input, b.y), advance(s.z, step.y, input, b.z),
         advance(s.w, step.y, input, b.w)};
    sums[r] = fmaf(s.w, c.w, fmaf(s.z, c.z, fmaf(s.y, c.y, s.x * c.x)));
  }
  return sum_rows<kRows>(sums, lane);
}

/// Consecutive tokens of a head's inputs in memory: those of token t lie `stride` floats further than those of t - 1.
struct ScanInputs {
  const float* x;  ///< of the first of the rows
  const float* b;
  const float* c;
  int32_t stride;
  const float2* steps;
  int32_t step_stride;
};

/// Scans `count` tokens with the state in memory, any size of it, a row a warp. emit(t, row, S · C + d · x) by one lane.
template <class Emit>
__device__ void scan_plain(float* state, int32_t states, int32_t rows, bool from_zero, float d,
                           const ScanInputs& inputs, int32_t count, Emit emit) {
  const int32_t lane = int32_t(threadIdx.x) % 32;
  for (int32_t row = int32_t(threadIdx.x) / 32; row < rows; row += int32_t(blockDim.x) / 32) {
    float* s = state + size_t(row) * states;
    for (int32_t t = 0; t < count; ++t) {
      const size_t at = size_t(t) * inputs.stride;
      const float2 step = inputs.steps[size_t(t) * inputs.step_stride];
      const float x = inputs.x[at + row];
      float sum = 0;
      for (int32_t n = lane; n < states; n += 32) {
        const float old = from_zero && t == 0 ? 0 : s[n];
        const float next = advance(old, step.y, step.x * x, inputs.b[at + n]);
        s[n] = next;
        sum = fmaf(next, inputs.c[at + n], sum);
      }
      for (int apart = 16; apart > 0; apart /= 2) sum += __shfl_xor_sync(~0u, sum, apart);
      if (lane == 0) emit(t, row, fmaf(d, x, sum));
    }
  }
}

/// Writes the normalised outputs of one token and group; by a warp. `value(i)`: the gated value of channel i of the
/// group; `width`: channels of a group; `norm`: the weights of the group; `kKept` values a lane are read only once.
template <int kKept, class Value>
__device__ __forceinline__ void normalise(const MambaArgs& args, const MambaShape& shape, int32_t width,
                                          int32_t token, int32_t group, const float* norm, Value value) {
  const int32_t lane = int32_t(threadIdx.x) % 32;
  float kept[kKept];
  float squares = 0;
#pragma unroll
  for (int k = 0; k < kKept; ++k) {
    const int32_t i = lane + 32 * k;
    kept[k] = i < width ? value(i) : 0;
  }
#pragma unroll
  for (int k = 0; k < kKept; ++k) squares = fmaf(kept[k], kept[k], squares);
  for (int32_t i = lane + 32 * kKept; i < width; i += 32) {
    const float v = value(i);
    squares = fmaf(v, v, squares);
  }
  for (int apart = 16; apart > 0; apart /= 2) squares += __shfl_xor_sync(~0u, squares, apart);
  const float inverse = 1 / std::sqrt(squares / float(width) + args.epsilon);
  const size_t out = size_t(token) * shape.inner + group * width;
#pragma unroll
  for (int k = 0; k < kKept; ++k) {
    const int32_t i = lane + 32 * k;
    if (i < width) write_element(args.y, args.type, out + i, kept[k] * inverse * norm[i]);
  }
  for (int32_t i = lane + 32 * kKept; i < width; i += 32) {
    write_element(args.y, args.type, out + i, value(i) * inverse * norm[i]);
  }
}

/// The same by a whole block, which must not have `kept`, `width` floats of shared memory, in use: a value a thread, where
/// a warp alone would write for as long as the rest of the step takes.
__device__ __forceinline__ void normalise_by_block(const MambaArgs& args, const MambaShape& shape,
                                                   int32_t width, int32_t token, int32_t group,
                                                   const float* norm, const float* values, float* kept) {
  const int32_t thread = int32_t(threadIdx.x), threads = int32_t(blockDim.x);
#pragma unroll 1
  for (int32_t i = thread; i < width; i += threads) kept[i] = values[i];
  __syncthreads();
  // In every warp, in the order that one warp alone has.
  float squares = 0;
#pragma unroll 8
  for (int32_t i = thread % 32; i < width; i += 32) squares = fmaf(kept[i], kept[i], squares);
  for (int apart = 16; apart > 0; apart /= 2) squares += __shfl_xor_sync(~0u, squares, apart);
  const float inverse = 1 / std::sqrt(squares / float(width) + args.epsilon);
  const size_t out = size_t(token) * shape.inner + group * width;
#pragma unroll 1
  for (int32_t i = thread; i < width; i += threads) {
    write_element(args.y, args.type, out + i, kept[i] * inverse * norm[i]);
  }
}

}  // namespace nibblet::mamba_device
