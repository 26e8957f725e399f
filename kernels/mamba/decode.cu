#include "kernels/cuda/step.h"
#include "kernels/mamba/launches.h"
#include "kernels/mamba/mixer.cuh"

namespace nibblet {
namespace {

using namespace mamba_device;

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;
/// Tokens whose inputs are prepared together.
constexpr int32_t kTile = 8;

/// Rows of a warp where a step has one token: one sequence alone fills the machine only with half heads.
constexpr int kRowsOfOne = 2;
static_assert(2 * kFastState + 2 * kRowsOfOne * kWarps + 1 <= kThreads,
              "a thread for each channel and gate, and for the token's step");

struct MixShape {
  int32_t parts;       ///< blocks of a head
  int32_t block_rows;  ///< rows of the state of each but perhaps the last
  int32_t tile;        ///< tokens prepared together, at most kTile
  int32_t heads_of_group;

  /// B, C and x of a token.
  __host__ __device__ int32_t pitch(int32_t states) const { return 2 * states + block_rows; }
  /// Of the weights of the norm, behind what is prepared.
  __host__ __device__ int32_t norm_at(int32_t states) const { return tile * (pitch(states) + block_rows); }
  /// Of dt and decay, two floats each.
  __host__ __device__ int32_t steps_at(int32_t states, int32_t width) const {
    return (norm_at(states) + width + 1) / 2 * 2;
  }
  /// Of what a group's norm works on.
  __host__ __device__ int32_t kept_at(int32_t states, int32_t width) const {
    return steps_at(states, width) + 2 * tile;
  }
  __host__ __device__ size_t shared_bytes(int32_t states, int32_t width) const {
    return (size_t(kept_at(states, width)) + size_t(width)) * sizeof(float);
  }
};

/// The channel of the convolution that a block prepares as its `local`-th: B and C of the group, then x of the rows.
__device__ __forceinline__ int32_t channel_of(const MambaArgs& args, const MambaShape& shape, int32_t group,
                                              int32_t first_row, int32_t local) {
  if (local < args.state) return shape.inner + group * args.state + local;
  if (local < 2 * args.state) return shape.inner + (args.groups + group) * args.state + local - args.state;
  return first_row + local - 2 * args.state;
}

/// Block (x, y, z): part x of head y of sequence z. All blocks of a group compute its B and C from the old
/// convolution state; the last one to arrive, when nobody reads that any more, replaces it and normalises the group.
/// Everything but `projected` is read before the wait (cuda.h says why that may be).
template <int kRows>
__global__ void __launch_bounds__(kThreads, kRows == kRowsOfOne ? 3 : 2)
    mix_kernel(const MambaArgs given, const MixShape mix, float* gated, uint32_t* arrived) {
  grid_dependency_launch();
  const MambaArgs args = known<kRows>(given);
  const MambaShape shape(args);
  constexpr int kTaps = kRows > 0 ? kFastTaps : kMaxTaps;
  const int32_t thread = int32_t(threadIdx.x);
  const int32_t lane = thread % 32;
  const int32_t head = int32_t(blockIdx.y);
  const int32_t begin = int32_t(blockIdx.x) * mix.block_rows;
  const int32_t rows = min(mix.block_rows, args.head_dim - begin);
  const int32_t first_row = head * args.head_dim + begin;
  const int32_t group = head / mix.heads_of_group;
  const int32_t width = mix.heads_of_group * args.head_dim;
  const int32_t channels = 2 * args.state + rows;
  const int32_t pitch = mix.pitch(args.state);

  float* const u = dynamic_shared<float>();
  float* const gates = u + mix.tile * pitch;
  float* const norm = u + mix.norm_at(args.state);
  float2* const steps = reinterpret_cast<float2*>(u + mix.steps_at(args.state, width));
  __shared__ bool is_last;

  const StepHead step = load_step(args.step);
  Sequence sequence = {};
  const bool present = int32_t(blockIdx.z) < step.sequence_count;
  if (present) sequence = step.sequences[blockIdx.z];
  float* const state = args.ssm_state + (size_t(sequence.slot) * shape.inner + first_row) * args.state;

  const HeadStep head_step(args, head);
  const float d = args.d[head];
  Convolution<kTaps> convolution;
  // With one token a thread prepares one thing: a channel, a gate, or, the last one, the token's step.
  [[maybe_unused]] const int32_t own_channel = channel_of(args, shape, group, first_row, thread);
  [[maybe_unused]] float window[kTaps] = {};
  [[maybe_unused]] const int32_t own_row = thread / 32 * kRows;
  [[maybe_unused]] float4 own[kRows > 0 ? kRows : 1];
  if constexpr (kRows > 0) {
    const float4* from = reinterpret_cast<const float4*>(state) + own_row * (kFastState / 4) + lane;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      own[r] = {0, 0, 0, 0};
      if (sequence.position > 0 && own_row + r < rows) own[r] = from[r * (kFastState / 4)];
    }
    if (thread < channels) {
      convolution.load(args, own_channel);
      convolution.load_history(args, shape, sequence, own_channel, window);
    }
  }
#pragma unroll 1
  for (int32_t i = thread; i < width; i += kThreads) norm[i] = args.norm[group * width + i];
  [[maybe_unused]] const bool is_gate = thread >= channels && thread < channels + rows;
  const int32_t place = thread < channels ? shape.inner + own_channel
                        : is_gate         ? first_row + thread - channels
                                          : shape.inner + shape.channels + head;
  [[maybe_unused]] const size_t input_at = size_t(sequence.first) * shape.row + place;
  const bool live = present && is_live(sequence, args.slots);
  grid_dependency_wait();
  if (!live) return;

  if constexpr (kRows > 0) {
    // As it is in every step of one token. Told so, the compiler keeps less in registers.
    sequence.first = 0;
    if (thread < channels + rows || thread == kThreads - 1) {
      const float input = read_element(args.projected, args.type, input_at);
      if (thread < channels) {
        u[thread] = convolution.next(window, input);
      } else if (is_gate) {
        gates[thread - channels] = silu(input);
      } else {
        *steps = head_step.size(input);
      }
    }
    __syncthreads();
    float x[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) x[r] = own_row + r < rows ? u[2 * kFastState + own_row + r] : 0;
    const float4 b = reinterpret_cast<const float4*>(u)[lane];
    const float4 c = reinterpret_cast<const float4*>(u + kFastState)[lane];
    const float sum = scan_token<kRows>(own, *steps, x, b, c, lane);
    const int32_t row = own_row + lane / (32 / kRows);
    float* const out = gated + size_t(sequence.first) * shape.inner + first_row;
    if (lane % (32 / kRows) == 0 && row < rows) out[row] = fmaf(d, u[2 * kFastState + row], sum) * gates[row];
  } else {
    for (int32_t first = 0; first < sequence.count; first += mix.tile) {
      const int32_t count = min(mix.tile, sequence.count - first);
      if (first > 0) __syncthreads();
      for (int32_t local = thread; local < channels + rows; local += kThreads) {
        if (local < channels) {
          const int32_t channel = channel_of(args, shape, group, first_row, local);
          convolution.load(args, channel);
          convolution.run(args, shape, sequence, channel, first, count, u + local, pitch);
        } else {
          const int32_t row = local - channels;
#pragma unroll 1
          for (int32_t t = 0; t < count; ++t) {
            const size_t token = size_t(sequence.first + first + t);
            gates[t * mix.block_rows + row] =
                silu(read_element(args.projected, args.type, token * shape.row + first_row + row));
          }
        }
      }
      const int32_t t = kThreads - 1 - thread;
      if (t < count) {
        const size_t at = shape.dt_row(sequence.first + first + t) + head;
        steps[t] = head_step.size(read_element(args.projected, args.type, at));
      }
      __syncthreads();
      float* const out = gated + size_t(sequence.first + first) * shape.inner + first_row;
      const ScanInputs inputs = {u + 2 * args.state, u, u + args.state, pitch, steps, 1};
      scan_plain(state, args.state, rows, sequence.position == 0 && first == 0, d, inputs, count,
                 [&](int32_t t, int32_t row, float value) {
                   out[size_t(t) * shape.inner + row] = value * gates[t * mix.block_rows + row];
                 });
    }
  }

  // As arrive_last, but the counter becomes zero at the end: where that does, the 40 registers of one token spill.
  __syncthreads();
  uint32_t* const counter = arrived + blockIdx.z * args.groups + group;
  if (thread == 0) {
    is_last = arrive_on(counter, 1) + 1 == uint32_t(mix.heads_of_group * mix.parts);
  }
  // Meanwhile what nobody waits for.
  if constexpr (kRows > 0) {
    float4* to = reinterpret_cast<float4*>(state) + own_row * (kFastState / 4) + lane;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (own_row + r < rows) to[r * (kFastState / 4)] = own[r];
    }
  }
  const int32_t shared_channels = 2 * args.state;  // B and C, which other blocks read
  if constexpr (kRows > 0) {
    if (thread >= shared_channels && thread < channels) {
      store_window(args, shape, sequence.slot, own_channel, window);
    }
  } else {
    for (int32_t row = thread; row < rows; row += kThreads) {
      store_history<kTaps>(args, shape, sequence, first_row + row);
    }
  }
  __syncthreads();
  if (!is_last) return;

  const float* const values = gated + size_t(sequence.first) * shape.inner + group * width;
  if (kRows > 0 || sequence.count == 1) {
    float* const kept = u + mix.kept_at(args.state, width);
    normalise_by_block(args, shape, width, sequence.first, group, norm, values, kept);
  } else {
    for (int32_t t = thread / 32; t < sequence.count; t += kWarps) {
      const float* const of_token = values + size_t(t) * shape.inner;
      normalise<8>(args, shape, width, sequence.first + t, group, norm,
                   [&](int32_t i) { return of_token[i]; });
    }
  }
  if constexpr (kRows > 0) {
    if (thread < shared_channels) store_window(args, shape, sequence.slot, own_channel, window);
  } else {
    for (int32_t local = thread; local < shared_channels; local += kThreads) {
      store_history<kTaps>(args, shape, sequence, channel_of(args, shape, group, first_row, local));
    }
  }
  if (thread == 0) *counter = 0;
}

template <int kRows>
cudaError_t launch_mix(const MambaArgs& args, int32_t capacity, float* gated, uint32_t* arrived,
                       const CudaTarget& target) {
  MixShape mix = {};
  mix.block_rows = kRows > 0 ? kRows * kWarps : args.head_dim;
  mix.parts = (args.head_dim + mix.block_rows - 1) / mix.block_rows;
  mix.tile = capacity < kTile ? capacity : kTile;
  mix.heads_of_group = args.heads / args.groups;
  const int32_t width = mix.heads_of_group * args.head_dim;
  const size_t shared = mix.shared_bytes(args.state, width);
  if (cudaError_t error = allow_shared_memory(mix_kernel<kRows>, shared); error != cudaSuccess) return error;
  const LaunchShape launched = {dim3(unsigned(mix.parts), unsigned(args.heads), unsigned(capacity)),
                                dim3(kThreads), shared};
  return launch(target, launched, mix_kernel<kRows>, args, mix, gated, arrived);
}

}  // namespace

cudaError_t mamba_cuda_mix(const MambaArgs& args, int32_t capacity, float* gated, uint32_t* arrived,
                           const CudaTarget& target) {
  if (!mamba_cuda_is_fast(args)) return launch_mix<0>(args, capacity, gated, arrived, target);
  if (capacity > 1) return mamba_cuda_mix_batch(args, capacity, gated, arrived, target);
  return launch_mix<kRowsOfOne>(args, capacity, gated, arrived, target);
}

}  // namespace nibblet
