#include <type_traits>

#include "kernels/cuda/arrive.h"
#include "kernels/cuda/step.h"
#include "kernels/mamba/launches.h"
#include "kernels/mamba/mixer.cuh"

namespace nibblet {
namespace {

using namespace mamba_device;

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
/// Rows of the state of a warp, and how many of them it has in registers at once.
constexpr int kWarpRows = 8;
constexpr int kRows = 4;
constexpr int32_t kBlockRows = kWarps * kWarpRows;
/// B, C and x of a token.
constexpr int32_t kPitch = 2 * kFastState + kBlockRows;
/// Of several tokens of a sequence: how many are prepared together, and the inputs of how many a thread has under way.
constexpr int32_t kTile = 8;
constexpr int32_t kAhead = 4;

static_assert(2 * kFastState == kThreads, "a thread for each channel of B and C");

/// Shared memory of a block, in floats.
struct Layout {
  static constexpr int32_t kStates = kBlockRows * kFastState;
  int32_t u, gates, steps, end;
  /// @param width  channels of a group: its norm works where the state was
  __host__ __device__ explicit Layout(int32_t width) {
    u = width > kStates ? (width + 3) / 4 * 4 : kStates;
    gates = u + kTile * kPitch;
    steps = gates + kTile * kBlockRows;
    end = steps + 2 * kTile;
  }
};

/// A step of several sequences: as mix_kernel (decode.cu), but the state waits in shared memory, which an SM has more of than of
/// registers. What counts is how many bytes are under way while blocks wait for their inputs, for each other or for the norm.
/// A thread copies the very states that it multiplies, so nobody waits for another's. Four blocks an SM leave 64 registers:
/// what five spilled went through memory too.
__global__ void __launch_bounds__(kThreads, 4)
    mix_batch_kernel(const MambaArgs given, const int32_t heads_of_group, float* gated, uint32_t* arrived) {
  static_assert(2 * kBlockRows + kTile <= kThreads,
                "a thread for each row's x and gate, and for each token's step");
  grid_dependency_launch();
  const MambaArgs args = known<kRows>(given);
  const MambaShape shape(args);
  const int32_t thread = int32_t(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int32_t head = int32_t(blockIdx.y);
  const int32_t begin = int32_t(blockIdx.x) * kBlockRows;
  const int32_t rows = min(kBlockRows, args.head_dim - begin);
  const int32_t first_row = head * args.head_dim + begin;
  const int32_t group = head / heads_of_group;
  const int32_t width = heads_of_group * args.head_dim;

  float* const memory = dynamic_shared<float>();
  const Layout at(width);
  float* const u = memory + at.u;
  float* const gates = memory + at.gates;
  float2* const steps = reinterpret_cast<float2*>(memory + at.steps);
  __shared__ bool is_last;

  const StepHead step = load_step(args.step);
  const bool present = int32_t(blockIdx.z) < step.sequence_count;
  if (!present) {
    grid_dependency_wait();
    return;
  }
  const Sequence sequence = step.sequences[blockIdx.z];

  const int32_t own_row = warp * kWarpRows;
  float4* const state =
      reinterpret_cast<float4*>(
          args.ssm_state + (size_t(sequence.slot) * shape.inner + size_t(first_row + own_row)) * kFastState) +
      lane;
  float4* const kept = reinterpret_cast<float4*>(memory) + own_row * (kFastState / 4) + lane;
#pragma unroll
  for (int r = 0; r < kWarpRows; ++r) {
    if (own_row + r >= rows) continue;
    if (sequence.position > 0) {
      copy_async(kept + r * (kFastState / 4), state + r * (kFastState / 4));
    } else {
      kept[r * (kFastState / 4)] = {0, 0, 0, 0};
    }
  }
  copy_async_commit();

  // Besides its channel of B or C a thread prepares one of x, a gate, or, from the end, the step of a token.
  const int32_t channel =
      shape.inner + (thread < kFastState ? 0 : (args.groups - 1) * kFastState) + group * kFastState + thread;
  const int32_t row_channel = first_row + thread;
  const int32_t own_step = kThreads - 1 - thread;
  const bool is_row = thread < rows, is_gate = !is_row && thread < 2 * rows;
  Convolution<kFastTaps> convolution, row_convolution;
  float window[kFastTaps] = {}, row_window[kFastTaps] = {};
  convolution.load(args, channel);
  convolution.load_history(args, shape, sequence, channel, window);
  if (is_row) {
    row_convolution.load(args, row_channel);
    row_convolution.load_history(args, shape, sequence, row_channel, row_window);
  }
  const HeadStep head_step(args, head);
  const float d = args.d[head];
  const int32_t place = is_row    ? shape.inner + row_channel
                        : is_gate ? row_channel - rows
                                  : shape.inner + shape.channels + head;
  const size_t input_at = size_t(sequence.first) * shape.row;
  const bool live = is_live(sequence, args.slots);
  const int32_t tokens = sequence.count;
  grid_dependency_wait();
  if (!live) {
    copy_async_wait<0>();
    return;
  }

  // Prepares tokens [t, t + kMany) of the tile that starts with `first`, as far as there are any.
  const auto prepare = [&]<int kMany>(int32_t first, int32_t t, int32_t count,
                                      std::integral_constant<int, kMany>) {
    float inputs[kMany], more[kMany];
#pragma unroll
    for (int i = 0; i < kMany; ++i) {
      inputs[i] = more[i] = 0;
      if (t + i >= count) continue;
      const size_t token = input_at + size_t(first + t + i) * shape.row;
      inputs[i] = read_element(args.projected, args.type, token + shape.inner + channel);
      if (is_row || is_gate || own_step == t + i) {
        more[i] = read_element(args.projected, args.type, token + place);
      }
    }
#pragma unroll
    for (int i = 0; i < kMany; ++i) {
      if (t + i >= count) continue;
      u[(t + i) * kPitch + thread] = convolution.next(window, inputs[i]);
      if (is_row) {
        u[(t + i) * kPitch + kThreads + thread] = row_convolution.next(row_window, more[i]);
      } else if (is_gate) {
        gates[(t + i) * kBlockRows + thread - rows] = silu(more[i]);
      } else if (own_step == t + i) {
        steps[t + i] = head_step.size(more[i]);
      }
    }
  };
  // `count` tokens of kRows of the warp's rows, from `part` on.
  const auto scan = [&](int part, int32_t first, int32_t count) {
    float* const out = gated + size_t(sequence.first + first) * shape.inner + first_row;
    float4 own[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) own[r] = kept[(part + r) * (kFastState / 4)];
    const int32_t row = own_row + part + lane / (32 / kRows);
#pragma unroll 1
    for (int32_t t = 0; t < count; ++t) {
      const float* token = u + t * kPitch;
      const float4 b = reinterpret_cast<const float4*>(token)[lane];
      const float4 c = reinterpret_cast<const float4*>(token + kFastState)[lane];
      float x[kRows];
#pragma unroll
      for (int r = 0; r < kRows; ++r) x[r] = token[2 * kFastState + own_row + part + r];
      const float sum = scan_token<kRows>(own, steps[t], x, b, c, lane);
      if (lane % (32 / kRows) == 0 && row < rows) {
        out[size_t(t) * shape.inner + row] =
            fmaf(d, token[2 * kFastState + row], sum) * gates[t * kBlockRows + row];
      }
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) kept[(part + r) * (kFastState / 4)] = own[r];
  };
  if (tokens == 1) {
    prepare(0, 0, 1, std::integral_constant<int, 1>());
    copy_async_wait<0>();
    __syncthreads();
#pragma unroll
    for (int part = 0; part < kWarpRows; part += kRows) scan(part, 0, 1);
  } else {
#pragma unroll 1
    for (int32_t first = 0; first < tokens; first += kTile) {
      const int32_t count = min(kTile, tokens - first);
      if (first > 0) __syncthreads();
#pragma unroll 1
      for (int32_t t = 0; t < count; t += kAhead) {
        prepare(first, t, count, std::integral_constant<int, kAhead>());
      }
      copy_async_wait<0>();
      __syncthreads();
#pragma unroll 1
      for (int part = 0; part < kWarpRows; part += kRows) scan(part, first, count);
    }
  }

  copy_async_wait<0>();
  const auto store_own = [&] {
#pragma unroll
    for (int r = 0; r < kWarpRows; ++r) {
      if (own_row + r >= rows) continue;
      store_once(state + r * (kFastState / 4), kept + r * (kFastState / 4));
    }
    if (is_row) store_window(args, shape, sequence.slot, row_channel, row_window);
  };
  uint32_t* const counter = arrived + blockIdx.z * args.groups + group;
  if (!arrive_last(counter, heads_of_group * int32_t(gridDim.x), is_last, store_own)) return;

  const float* const norm = args.norm + group * width;
  const float* const values = gated + size_t(sequence.first) * shape.inner + group * width;
  if (tokens == 1) {
    normalise_by_block(args, shape, width, sequence.first, group, norm, values, memory);
  } else {
    for (int32_t t = warp; t < tokens; t += kWarps) {
      const float* const of_token = values + size_t(t) * shape.inner;
      normalise<8>(args, shape, width, sequence.first + t, group, norm,
                   [&](int32_t i) { return of_token[i]; });
    }
  }
  // B and C, which other blocks read too.
  store_window(args, shape, sequence.slot, channel, window);
}

}  // namespace

cudaError_t mamba_cuda_mix_batch(const MambaArgs& args, int32_t capacity, float* gated, uint32_t* arrived,
                                 const CudaTarget& target) {
  const int32_t heads_of_group = args.heads / args.groups;
  const size_t shared = size_t(Layout(heads_of_group * args.head_dim).end) * sizeof(float);
  if (cudaError_t error = allow_shared_memory(mix_batch_kernel, shared); error != cudaSuccess) return error;
  const int32_t parts = (args.head_dim + kBlockRows - 1) / kBlockRows;
  const LaunchShape launched = {dim3(unsigned(parts), unsigned(args.heads), unsigned(capacity)),
                                dim3(kThreads), shared};
  return launch(target, launched, mix_batch_kernel, args, heads_of_group, gated, arrived);
}

}  // namespace nibblet
