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
constexpr int kRowsOfMany = 4;
static_assert(2 * kFastState + 2 * kRowsOfMany * kWarps < kThreads,
              "a thread for each channel, gate and the step");

struct MixShape {
  int32_t parts;       ///< blocks of a head
  int32_t block_rows;  ///< rows of the state of each but perhaps the last
  int32_t tile;        ///< tokens prepared together, at most kTile

  /// B, C and x of a token.
  __host__ __device__ int32_t pitch(int32_t states) const { return 2 * states + block_rows; }
  /// Of the weights of the norm, behind what is prepared.
  __host__ __device__ int32_t norm_at(int32_t states) const { return tile * (pitch(states) + block_rows); }
  /// Of dt and decay, two floats each.
  __host__ __device__ int32_t steps_at(int32_t states, int32_t width) const {
    return (norm_at(states) + width + 1) / 2 * 2;
  }
  __host__ __device__ size_t shared_bytes(int32_t states, int32_t width) const {
    return (size_t(steps_at(states, width)) + 2 * size_t(tile)) * sizeof(float);
  }
};

/// The channel of the convolution that a block prepares as its `local`-th: B and C of the group, then x of the rows.
__device__ __forceinline__ int32_t channel_of(const MambaArgs& args, const MambaShape& shape, int32_t group,
                                              int32_t first_row, int32_t local) {
  if (local < args.state) return shape.inner + group * args.state + local;
  if (local < 2 * args.state) return shape.inner + (args.groups + group) * args.state + local - args.state;
  return first_row + local - 2 * args.state;
}

/// Block (x, y): part x % parts of head x / parts of sequence y. All blocks of a group compute its B and C from the old
/// convolution state; the last one to arrive, when nobody reads that any more, replaces it and normalises the group.
template <int kRows>
__global__ void __launch_bounds__(kThreads, 2)
    mix_kernel(const MambaArgs given, const MixShape mix, float* gated, uint32_t* arrived) {
  grid_dependency_launch();
  const MambaArgs args = known<kRows>(given);
  const MambaShape shape(args);
  constexpr int kTaps = kRows > 0 ? kFastTaps : kMaxTaps;
  constexpr bool kOne = kRows == kRowsOfOne;
  const int32_t thread = int32_t(threadIdx.x);
  const int32_t lane = thread % 32;
  const int32_t head = int32_t(blockIdx.x) / mix.parts;
  const int32_t begin = int32_t(blockIdx.x) % mix.parts * mix.block_rows;
  const int32_t rows = min(mix.block_rows, args.head_dim - begin);
  const int32_t first_row = head * args.head_dim + begin;
  const int32_t heads_of_group = args.heads / args.groups;
  const int32_t group = head / heads_of_group;
  const int32_t width = shape.inner / args.groups;
  const int32_t channels = 2 * args.state + rows;
  const int32_t pitch = mix.pitch(args.state);

  float* const u = dynamic_shared<float>();
  float* const gates = u + mix.tile * pitch;
  float* const norm = u + mix.norm_at(args.state);
  float2* const steps = reinterpret_cast<float2*>(u + mix.steps_at(args.state, width));
  __shared__ bool is_last;

  // Weights: the only thing that may be read before the wait.
  for (int32_t i = thread; i < width; i += kThreads) norm[i] = args.norm[group * width + i];
  Convolution<kTaps> convolution;
  [[maybe_unused]] const int32_t own_channel = channel_of(args, shape, group, first_row, thread);
  if constexpr (kRows > 0) {
    if (thread < channels) convolution.load(args, own_channel);
  }
  const float d = args.d[head];
  grid_dependency_wait();

  const Step& step = *args.step;
  if (int32_t(blockIdx.y) >= step.sequence_count) return;
  float input = 0;
  if constexpr (kOne) {
    // The only token is the first: its row is read while the sequence is.
    const int32_t place = thread < channels          ? shape.inner + own_channel
                          : thread < channels + rows ? first_row + thread - channels
                                                     : shape.inner + shape.channels + head;
    input = read_element(args.projected, args.type, size_t(place));
  }
  const Sequence sequence = step.sequences[blockIdx.y];
  const bool live = is_live(sequence, args.slots);
  float* const state = args.ssm_state + (size_t(sequence.slot) * shape.inner + first_row) * args.state;

  [[maybe_unused]] const int32_t own_row = thread / 32 * kRows;
  [[maybe_unused]] float4 own[kRows > 0 ? kRows : 1];
  if constexpr (kRows > 0) {
    const float4* from = reinterpret_cast<const float4*>(state) + own_row * (kFastState / 4) + lane;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      own[r] = {0, 0, 0, 0};
      if (sequence.position > 0 && own_row + r < rows) own[r] = from[r * (kFastState / 4)];
    }
  }
  if (!live) return;

  for (int32_t first = 0; first < sequence.count; first += mix.tile) {
    const int32_t count = min(mix.tile, sequence.count - first);
    if (first > 0) __syncthreads();
    if constexpr (kOne) {
      if (thread < channels) {
        u[thread] = convolution.one(args, shape, sequence, own_channel, input);
      } else if (thread < channels + rows) {
        gates[thread - channels] = silu(input);
      } else if (thread == kThreads - 1) {
        steps[0] = step_size(args, input, head);
      }
    } else {
      for (int32_t local = thread; local < channels + rows; local += kThreads) {
        if (local < channels) {
          const int32_t channel = channel_of(args, shape, group, first_row, local);
          if constexpr (kRows == 0) convolution.load(args, channel);
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
      // From the end: those threads have no channel.
      const int32_t t = kThreads - 1 - thread;
      if (t < count) steps[t] = step_size(args, shape, sequence.first + first + t, head);
    }
    __syncthreads();

    float* const out = gated + size_t(sequence.first + first) * shape.inner + first_row;
    const auto emit = [&](int32_t t, int32_t row, float value) {
      out[size_t(t) * shape.inner + row] = value * gates[t * mix.block_rows + row];
    };
    if constexpr (kRows == 0) {
      const ScanInputs inputs = {u + 2 * args.state, u, u + args.state, pitch, steps, 1};
      scan_plain(state, args.state, rows, sequence.position == 0 && first == 0, d, inputs, count, emit);
    } else {
#pragma unroll 1
      for (int32_t t = 0; t < count; ++t) {
        const float* token = u + t * pitch;
        float x[kRows];
#pragma unroll
        for (int r = 0; r < kRows; ++r) x[r] = own_row + r < rows ? token[2 * kFastState + own_row + r] : 0;
        const float4 b = reinterpret_cast<const float4*>(token)[lane];
        const float4 c = reinterpret_cast<const float4*>(token + kFastState)[lane];
        const float sum = scan_token<kRows>(own, steps[t], x, b, c, lane);
        const int32_t row = own_row + lane / (32 / kRows);
        if (lane % (32 / kRows) == 0 && row < rows) {
          emit(t, row, fmaf(d, token[2 * kFastState + row], sum));
        }
      }
    }
  }

  __syncthreads();
  uint32_t* const counter = arrived + blockIdx.y * args.groups + group;
  if (thread == 0) {
    __threadfence();
    is_last = atomicAdd(counter, 1u) + 1 == uint32_t(heads_of_group * mix.parts);
  }
  // Meanwhile what nobody waits for.
  if constexpr (kRows > 0) {
    float4* to = reinterpret_cast<float4*>(state) + own_row * (kFastState / 4) + lane;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (own_row + r < rows) to[r * (kFastState / 4)] = own[r];
    }
  }
  for (int32_t row = thread; row < rows; row += kThreads) {
    store_history<kTaps>(args, shape, sequence, first_row + row);
  }
  __syncthreads();
  if (!is_last) return;

  __threadfence();
  for (int32_t t = thread / 32; t < sequence.count; t += kWarps) {
    const float* values = gated + size_t(sequence.first + t) * shape.inner + group * width;
    normalise(args, shape, sequence.first + t, group, norm, [&](int32_t i) { return values[i]; });
  }
  // From the end: with few tokens those warps have nothing to normalise.
  for (int32_t local = kThreads - 1 - thread; local < 2 * args.state; local += kThreads) {
    store_history<kTaps>(args, shape, sequence, channel_of(args, shape, group, first_row, local));
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
  const int32_t width = args.heads / args.groups * args.head_dim;
  const size_t shared = mix.shared_bytes(args.state, width);
  if (cudaError_t error = allow_shared_memory(mix_kernel<kRows>, shared); error != cudaSuccess) return error;
  const LaunchShape launched = {dim3(unsigned(args.heads * mix.parts), unsigned(capacity)), dim3(kThreads),
                                shared};
  return launch(target, launched, mix_kernel<kRows>, args, mix, gated, arrived);
}

}  // namespace

cudaError_t mamba_cuda_mix(const MambaArgs& args, int32_t capacity, float* gated, uint32_t* arrived,
                           const CudaTarget& target) {
  if (!mamba_cuda_is_fast(args)) return launch_mix<0>(args, capacity, gated, arrived, target);
  if (capacity == 1) return launch_mix<kRowsOfOne>(args, capacity, gated, arrived, target);
  return launch_mix<kRowsOfMany>(args, capacity, gated, arrived, target);
}

}  // namespace nibblet
