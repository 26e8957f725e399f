#include "kernels/mamba/launches.h"
#include "kernels/mamba/mixer.cuh"

namespace nibblet {
namespace {

using namespace mamba_device;

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
/// Tokens of a channel that a thread convolves one after another.
constexpr int32_t kConvTokens = 16;
/// Rows of the state that a warp scans in registers, and tokens whose inputs are fetched together.
constexpr int kScanRows = 4;
constexpr int32_t kScanTokens = 16;
/// A step seldom has more sequences; blocks take every so-manieth.
constexpr int32_t kScanSequences = 16;

/// u, dt and decay of every token. The convolution state is only read here.
template <int kRows>
__global__ void __launch_bounds__(kThreads)
    conv_kernel(const MambaArgs given, float* convolved, float2* steps) {
  grid_dependency_launch();
  const MambaArgs args = known<kRows>(given);
  const MambaShape shape(args);
  const int32_t channel = int32_t(blockIdx.x * kThreads + threadIdx.x);
  ConvolutionOf<kRows> convolution;
  if (channel < shape.channels) convolution.load(args, channel);
  grid_dependency_wait();

  const Step& step = *args.step;
  const int32_t head = channel - shape.channels;
  if (head >= args.heads) return;
  const int32_t end = min(step.tokens, int32_t(blockIdx.y + 1) * kConvTokens);
  for (int32_t token = int32_t(blockIdx.y) * kConvTokens; token < end;) {
    const Sequence sequence = step.sequences[step.sequence_of[token]];
    const int32_t count = min(end, sequence.first + sequence.count) - token;
    if (is_live(sequence, args.slots)) {
      if (head < 0) {
        convolution.run(args, shape, sequence, channel, token - sequence.first, count,
                        convolved + size_t(token) * shape.channels + channel, shape.channels);
      } else {
        for (int32_t t = token; t < token + count; ++t) {
          steps[size_t(t) * args.heads + head] = step_size(args, shape, t, head);
        }
      }
    }
    token += count;
  }
}

/// Shared memory of the fast scan: two tiles of tokens, each token's B, C and x of the block's rows.
struct Tile {
  static constexpr int32_t kRowsOfBlock = kScanRows * kWarps;
  static constexpr int32_t kPitch = 2 * kFastState + kRowsOfBlock;
  static constexpr int32_t kChunks = kPitch / 4;  ///< 16 bytes each
  float inputs[2][kScanTokens][kPitch];
  float2 steps[2][kScanTokens];
};

/// Scans the tokens of a sequence for 32 rows of a head with the state in registers, fetching a tile while another is
/// computed.
__device__ void scan_fast(const MambaArgs& args, const MambaShape& shape, const Sequence& sequence,
                          int32_t head, int32_t begin, int32_t rows, const float* convolved,
                          const float2* steps, float* scanned, Tile& tile) {
  const int32_t thread = int32_t(threadIdx.x);
  const int32_t lane = thread % 32;
  const int32_t own_row = thread / 32 * kScanRows;
  const int32_t group = head / (args.heads / args.groups);
  const int32_t first_row = head * args.head_dim + begin;
  const float d = args.d[head];

  const auto fetch = [&](int32_t first) {
    const int32_t stage = first / kScanTokens % 2;
    const int32_t count = min(kScanTokens, sequence.count - first);
    const float* token = convolved + size_t(sequence.first + first) * shape.channels;
    for (int32_t i = thread; i < count * Tile::kChunks; i += kThreads) {
      const int32_t t = i / Tile::kChunks;
      const int32_t at = i % Tile::kChunks * 4;
      const int32_t channel = at < kFastState ? shape.inner + group * kFastState + at
                              : at < 2 * kFastState
                                  ? shape.inner + (args.groups + group - 1) * kFastState + at
                                  : first_row + at - 2 * kFastState;
      if (at - 2 * kFastState < rows) {
        copy_async(&tile.inputs[stage][t][at], token + size_t(t) * shape.channels + channel);
      }
    }
    copy_async_commit();
    if (thread < count) {
      tile.steps[stage][thread] = steps[size_t(sequence.first + first + thread) * args.heads + head];
    }
  };

  float4* const state = reinterpret_cast<float4*>(
                            args.ssm_state + (size_t(sequence.slot) * shape.inner + first_row) * kFastState) +
                        own_row * (kFastState / 4) + lane;
  float4 own[kScanRows];
#pragma unroll
  for (int r = 0; r < kScanRows; ++r) {
    own[r] = {0, 0, 0, 0};
    if (sequence.position > 0 && own_row + r < rows) own[r] = state[r * (kFastState / 4)];
  }
  fetch(0);
  for (int32_t first = 0; first < sequence.count; first += kScanTokens) {
    if (first + kScanTokens < sequence.count) {
      fetch(first + kScanTokens);
      copy_async_wait<1>();
    } else {
      copy_async_wait<0>();
    }
    __syncthreads();
    const int32_t stage = first / kScanTokens % 2;
    const int32_t count = min(kScanTokens, sequence.count - first);
    const int32_t row = own_row + lane / (32 / kScanRows);
    const bool emits = lane % (32 / kScanRows) == 0 && row < rows;
    float* out = scanned + size_t(sequence.first + first) * shape.inner + first_row + row;
#pragma unroll 2
    for (int32_t t = 0; t < count; ++t) {
      const float* token = tile.inputs[stage][t];
      float x[kScanRows];
#pragma unroll
      for (int r = 0; r < kScanRows; ++r) x[r] = own_row + r < rows ? token[2 * kFastState + own_row + r] : 0;
      const float4 b = reinterpret_cast<const float4*>(token)[lane];
      const float4 c = reinterpret_cast<const float4*>(token + kFastState)[lane];
      const float sum = scan_token<kScanRows>(own, tile.steps[stage][t], x, b, c, lane);
      if (emits) out[size_t(t) * shape.inner] = fmaf(d, token[2 * kFastState + row], sum);
    }
    __syncthreads();
  }
#pragma unroll
  for (int r = 0; r < kScanRows; ++r) {
    if (own_row + r < rows) state[r * (kFastState / 4)] = own[r];
  }
}

/// Block (x, y): part x % parts of head x / parts, every so-manieth sequence. Also replaces the convolution state, which
/// nobody reads any more: that of the block's x, and of B and C in the first block of a group.
template <bool kFast>
__global__ void __launch_bounds__(kThreads)
    scan_kernel(const MambaArgs given, const int32_t parts, const int32_t block_rows, const float* convolved,
                const float2* steps, float* scanned) {
  grid_dependency_launch();
  const MambaArgs args = known<(kFast ? kScanRows : 0)>(given);
  const MambaShape shape(args);
  constexpr int kTaps = kFast ? kFastTaps : kMaxTaps;
  const int32_t thread = int32_t(threadIdx.x);
  const int32_t head = int32_t(blockIdx.x) / parts;
  const int32_t begin = int32_t(blockIdx.x) % parts * block_rows;
  const int32_t rows = min(block_rows, args.head_dim - begin);
  const int32_t first_row = head * args.head_dim + begin;
  const int32_t heads_of_group = args.heads / args.groups;
  const int32_t group = head / heads_of_group;
  const bool owns_group = head % heads_of_group == 0 && begin == 0;
  grid_dependency_wait();

  const Step& step = *args.step;
  for (int32_t s = int32_t(blockIdx.y); s < step.sequence_count; s += int32_t(gridDim.y)) {
    const Sequence sequence = step.sequences[s];
    if (!is_live(sequence, args.slots)) continue;
    if constexpr (kFast) {
      scan_fast(args, shape, sequence, head, begin, rows, convolved, steps, scanned, *dynamic_shared<Tile>());
    } else {
      const float* token = convolved + size_t(sequence.first) * shape.channels;
      const float* b = token + shape.inner + group * args.state;
      const ScanInputs inputs = {token + first_row,
                                 b,
                                 b + args.groups * args.state,
                                 shape.channels,
                                 steps + size_t(sequence.first) * args.heads + head,
                                 args.heads};
      float* state = args.ssm_state + (size_t(sequence.slot) * shape.inner + first_row) * args.state;
      float* out = scanned + size_t(sequence.first) * shape.inner + first_row;
      scan_plain(state, args.state, rows, sequence.position == 0, args.d[head], inputs, sequence.count,
                 [&](int32_t t, int32_t row, float value) { out[size_t(t) * shape.inner + row] = value; });
    }
    for (int32_t row = thread; row < rows; row += kThreads) {
      store_history<kTaps>(args, shape, sequence, first_row + row);
    }
    for (int32_t i = thread; owns_group && i < 2 * args.state; i += kThreads) {
      const int32_t part = i < args.state ? group : args.groups + group - 1;
      store_history<kTaps>(args, shape, sequence, shape.inner + part * args.state + i);
    }
  }
}

/// A warp for each token and group.
__global__ void __launch_bounds__(kThreads) norm_kernel(const MambaArgs args, const float* scanned) {
  grid_dependency_launch();
  const MambaShape shape(args);
  const int32_t unit = int32_t(blockIdx.x) * kWarps + int32_t(threadIdx.x) / 32;
  const int32_t token = unit / args.groups;
  const int32_t group = unit % args.groups;
  grid_dependency_wait();

  const Step& step = *args.step;
  if (token >= step.tokens) return;
  if (!is_live(step.sequences[step.sequence_of[token]], args.slots)) return;
  const int32_t width = shape.inner / args.groups;
  const float* values = scanned + size_t(token) * shape.inner + group * width;
  const size_t gates = size_t(token) * shape.row + group * width;
  normalise<16>(args, shape, width, token, group, args.norm + group * width, [&](int32_t i) {
    return values[i] * silu(read_element(args.projected, args.type, gates + i));
  });
}

constexpr unsigned blocks_for(int64_t count, int64_t each) { return unsigned((count + each - 1) / each); }

/// Where the intermediate values of a step lie.
struct Workspace {
  float2* steps;     ///< [capacity, heads]
  float* convolved;  ///< [capacity, channels]
  float* scanned;    ///< [capacity, inner]
  size_t bytes;

  Workspace(const MambaArgs& args, int32_t capacity, void* base) {
    const MambaShape shape(args);
    uint8_t* const start = static_cast<uint8_t*>(base);
    const auto place = [&](size_t count, size_t size) {
      uint8_t* const at = start + bytes;
      bytes += (size_t(capacity) * count * size + 127) / 128 * 128;
      return at;
    };
    bytes = 0;
    steps = reinterpret_cast<float2*>(place(size_t(args.heads), sizeof(float2)));
    convolved = reinterpret_cast<float*>(place(size_t(shape.channels), sizeof(float)));
    scanned = reinterpret_cast<float*>(place(size_t(shape.inner), sizeof(float)));
  }
};

template <bool kFast>
cudaError_t launch_phases(const MambaArgs& args, int32_t capacity, void* workspace,
                          const CudaTarget& target) {
  const MambaShape shape(args);
  const Workspace at(args, capacity, workspace);
  const LaunchShape conv = {
      dim3(blocks_for(int64_t{shape.channels} + args.heads, kThreads), blocks_for(capacity, kConvTokens)),
      dim3(kThreads)};
  cudaError_t error =
      launch(target, conv, conv_kernel<(kFast ? kScanRows : 0)>, args, at.convolved, at.steps);
  if (error != cudaSuccess) return error;

  const int32_t block_rows = kFast ? Tile::kRowsOfBlock : args.head_dim;
  const int32_t parts = (args.head_dim + block_rows - 1) / block_rows;
  const size_t shared = kFast ? sizeof(Tile) : 0;
  error = allow_shared_memory(scan_kernel<kFast>, shared);
  if (error != cudaSuccess) return error;
  const int32_t sequences = capacity < kScanSequences ? capacity : kScanSequences;
  const LaunchShape scan = {dim3(unsigned(args.heads * parts), unsigned(sequences)), dim3(kThreads), shared};
  error =
      launch(target, scan, scan_kernel<kFast>, args, parts, block_rows, at.convolved, at.steps, at.scanned);
  if (error != cudaSuccess) return error;

  const LaunchShape norm = {dim3(blocks_for(int64_t{capacity} * args.groups, kWarps)), dim3(kThreads)};
  return launch(target, norm, norm_kernel, args, at.scanned);
}

}  // namespace

cudaError_t mamba_cuda_phases(const MambaArgs& args, int32_t capacity, void* workspace,
                              const CudaTarget& target) {
  if (mamba_cuda_is_fast(args)) return launch_phases<true>(args, capacity, workspace, target);
  return launch_phases<false>(args, capacity, workspace, target);
}

size_t mamba_cuda_phases_bytes(const MambaArgs& args, int32_t capacity) {
  return Workspace(args, capacity, nullptr).bytes;
}

}  // namespace nibblet
