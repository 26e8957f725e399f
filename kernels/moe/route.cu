#include "kernels/moe/route.cuh"
#include "kernels/numerics/bf16.h"

namespace nibblet {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
/// Tokens that a block scores.
constexpr int kScoredTokens = 16;
/// Vectors of router weights that a thread holds before x is known.
constexpr int kAhead = 3;

__device__ float warp_sum(float value) {
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) value += __shfl_xor_sync(0xffffffffu, value, lane);
  return value;
}

__device__ float inverse_root(const MoeArgs& args, float squares) {
  return 1.0f / sqrtf(squares / float(args.hidden) + args.epsilon);
}

__device__ float sigmoid(float logit) { return 1.0f / (1.0f + expf(-logit)); }

__device__ float4 load4(const float* from) { return __ldcg(reinterpret_cast<const float4*>(from)); }

/// Four products of router and norm.
__device__ float4 weight4(const MoeArgs& args, const float* row, int32_t k) {
  const float4 w = *reinterpret_cast<const float4*>(row + k);
  const float4 n = *reinterpret_cast<const float4*>(args.norm + k);
  return {w.x * n.x, w.y * n.y, w.z * n.z, w.w * n.w};
}

__device__ float dot4(float4 a, float4 b, float sum) {
  return fmaf(a.x, b.x, fmaf(a.y, b.y, fmaf(a.z, b.z, fmaf(a.w, b.w, sum))));
}

/// The score of one expert a block, for the first token. x̂ · router = (x · (norm · router)) / root.
__global__ void __launch_bounds__(kThreads) moe_score_one(const MoePlan plan) {
  __shared__ float sums[2][kWarps];
  grid_dependency_launch();
  const MoeArgs& args = plan.args;
  const int32_t thread = int32_t(threadIdx.x), hidden = args.hidden;
  const float* row = args.router + size_t(blockIdx.x) * size_t(hidden);
  float dot = 0, squares = 0;
  bool live;
  if (plan.vectors) {
    float4 weights[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int32_t k = (thread + i * kThreads) * 4;
      weights[i] = k < hidden ? weight4(args, row, k) : make_float4(0, 0, 0, 0);
    }
    grid_dependency_wait();
    live = plan.step->tokens > 0;
    float4 x[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int32_t k = (thread + i * kThreads) * 4;
      x[i] = k < hidden ? load4(args.x + k) : make_float4(0, 0, 0, 0);
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      dot = dot4(x[i], weights[i], dot);
      squares = dot4(x[i], x[i], squares);
    }
#pragma unroll 1
    for (int32_t k = (thread + kAhead * kThreads) * 4; k < hidden; k += kThreads * 4) {
      const float4 more = load4(args.x + k);
      dot = dot4(more, weight4(args, row, k), dot);
      squares = dot4(more, more, squares);
    }
  } else {
    grid_dependency_wait();
    live = plan.step->tokens > 0;
#pragma unroll 1
    for (int32_t k = thread; k < hidden; k += kThreads) {
      const float x = __ldcg(args.x + k);
      dot = fmaf(x, args.norm[k] * row[k], dot);
      squares = fmaf(x, x, squares);
    }
  }
  dot = warp_sum(dot);
  squares = warp_sum(squares);
  if (thread % 32 == 0) {
    sums[0][thread / 32] = dot;
    sums[1][thread / 32] = squares;
  }
  __syncthreads();
  if (thread >= 32 || !live) return;
  dot = warp_sum(thread < kWarps ? sums[0][thread] : 0.0f);
  squares = warp_sum(thread < kWarps ? sums[1][thread] : 0.0f);
  if (thread == 0) plan.scores[blockIdx.x] = sigmoid(dot * inverse_root(args, squares));
}

/// Four values from k on, of which those past the end are zero.
__device__ float4 read4(const MoePlan& plan, const float* row, int32_t k) {
  const int32_t hidden = plan.args.hidden;
  if (plan.vectors) return k < hidden ? load4(row + k) : make_float4(0, 0, 0, 0);
  const auto value = [&](int32_t i) { return k + i < hidden ? __ldcg(row + k + i) : 0.0f; };
  return {value(0), value(1), value(2), value(3)};
}

/// Blocks (i, j, l): what inputs [kMoeSlice · j, kMoeSlice · (j + 1)) add to the logits of 32 experts, before the norm's
/// root, and to the squares of kScoredTokens tokens. A lane has an expert, and a warp an equal part of the inputs.
__global__ void __launch_bounds__(kThreads, 3) moe_score_many(const MoePlan plan) {
  constexpr int kOwn = kMoeSlice / kWarps;
  __shared__ float4 inputs[kScoredTokens][kMoeSlice / 4];
  __shared__ float sums[kWarps][kScoredTokens][32];
  grid_dependency_launch();
  const MoeArgs& args = plan.args;
  const int32_t thread = int32_t(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int32_t slice = int32_t(blockIdx.y), first_input = slice * kMoeSlice;
  const int32_t expert = int32_t(blockIdx.x) * 32 + lane;
  float4 weights[kOwn / 4];
#pragma unroll
  for (int i = 0; i < kOwn / 4; ++i) {
    const int32_t k = first_input + warp * kOwn + i * 4;
    const float4 norm = read4(plan, args.norm, k);
    float4 row = make_float4(0, 0, 0, 0);
    if (expert < args.experts) row = read4(plan, args.router + size_t(expert) * size_t(args.hidden), k);
    weights[i] = {row.x * norm.x, row.y * norm.y, row.z * norm.z, row.w * norm.w};
  }

  grid_dependency_wait();
  const int32_t first = int32_t(blockIdx.z) * kScoredTokens;
  const int32_t count = min(plan.step->tokens - first, kScoredTokens);
  if (count <= 0) return;
  // 32 threads, a warp, read what a token has here.
  static_assert(kMoeSlice == 128);
#pragma unroll
  for (int t = warp; t < kScoredTokens; t += kWarps) {
    float4 x = make_float4(0, 0, 0, 0);
    if (t < count) {
      x = read4(plan, args.x + size_t(first + t) * size_t(args.hidden), first_input + lane * 4);
    }
    inputs[t][lane] = x;
    if (blockIdx.x > 0) continue;
    const float squares = warp_sum(dot4(x, x, 0.0f));
    if (lane == 0 && t < count)
      plan.squares[size_t(slice) * size_t(args.tokens) + size_t(first + t)] = squares;
  }
  __syncthreads();
#pragma unroll 4
  for (int t = 0; t < kScoredTokens; ++t) {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kOwn / 4; ++i) sum = dot4(inputs[t][warp * (kOwn / 4) + i], weights[i], sum);
    sums[warp][t][lane] = sum;
  }
  __syncthreads();
  for (int32_t t = warp; t < count; t += kWarps) {
    float sum = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += sums[w][t][lane];
    const size_t row = size_t(slice) * size_t(args.tokens) + size_t(first + t);
    if (expert < args.experts) plan.scores[row * size_t(args.experts) + size_t(expert)] = sum;
  }
}

/// One token a block: its scores and the choice, by the first warp, while the others write x̂ in bf16.
__global__ void __launch_bounds__(kThreads) moe_choose_many(const MoePlan plan) {
  grid_dependency_launch();
  const MoeArgs& args = plan.args;
  const MoeChoice choice(args, dynamic_shared<uint8_t>());
  const int32_t thread = int32_t(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const size_t token = blockIdx.x, tokens = size_t(args.tokens);
  grid_dependency_wait();
  if (int32_t(token) >= plan.step->tokens) return;
  const float* row = args.x + token * size_t(args.hidden);
  const int32_t own = (thread - 32) * 4, stride = (kThreads - 32) * 4;
  float4 x[kAhead];
#pragma unroll
  for (int i = 0; i < kAhead; ++i) {
    x[i] = warp > 0 ? read4(plan, row, own + i * stride) : make_float4(0, 0, 0, 0);
  }
  float squares = 0;
  for (int32_t i = lane; i < plan.slices; i += 32)
    squares += __ldcg(plan.squares + size_t(i) * tokens + token);
  squares = warp_sum(squares);
  const float inverse = inverse_root(args, squares);
  for (int32_t e = thread; e < args.experts; e += kThreads) {
    float logit = 0;
#pragma unroll 8
    for (int32_t i = 0; i < plan.slices; ++i) {
      logit += __ldcg(plan.scores + (size_t(i) * tokens + token) * size_t(args.experts) + size_t(e));
    }
    choice.set(e, sigmoid(logit * inverse), args.bias[e]);
  }
  __syncthreads();
  if (warp == 0) {
    moe_choose(args, choice);
    moe_publish(args, choice, plan.chosen + token * size_t(args.top_k),
                plan.weights + token * size_t(args.top_k));
    return;
  }
  uint16_t* to = plan.normed + token * size_t(plan.normed_stride);
  const auto write = [&](int32_t k, float4 value) {
    const float4 norm = read4(plan, args.norm, k);
    const auto pair = [&](float a, float b) { return bf16_pair_from_floats(a, b); };
    *reinterpret_cast<uint2*>(to + k) = {pair(value.x * inverse * norm.x, value.y * inverse * norm.y),
                                         pair(value.z * inverse * norm.z, value.w * inverse * norm.w)};
  };
#pragma unroll
  for (int i = 0; i < kAhead; ++i) {
    if (own + i * stride < plan.normed_stride) write(own + i * stride, x[i]);
  }
  for (int32_t k = own + kAhead * stride; k < plan.normed_stride; k += stride) write(k, read4(plan, row, k));
}

/// How many threads before this one hold `flag`, and how many do in all.
struct Place {
  int32_t before;
  int32_t total;
};

__device__ Place place_in_block(bool flag, int32_t* sums) {
  const int32_t warp = int32_t(threadIdx.x) / 32, lane = int32_t(threadIdx.x) % 32;
  const uint32_t votes = __ballot_sync(0xffffffffu, flag);
  __syncthreads();
  if (lane == 0) sums[warp] = __popc(votes);
  __syncthreads();
  Place place = {__popc(votes & ((1u << lane) - 1)), 0};
  for (int32_t w = 0; w < kWarps; ++w) {
    if (w < warp) place.before += sums[w];
    place.total += sums[w];
  }
  return place;
}

/// The entries of one expert a block, in order, and its tiles. Every block counts the entries of all experts.
__global__ void __launch_bounds__(kThreads) moe_list(const MoePlan plan) {
  __shared__ int32_t sums[kWarps];
  __shared__ int32_t starts[2];
  int32_t* counts = dynamic_shared<int32_t>();
  grid_dependency_launch();
  grid_dependency_wait();
  const MoeArgs& args = plan.args;
  const int32_t thread = int32_t(threadIdx.x), expert = int32_t(blockIdx.x);
  const int32_t all = plan.step->tokens * args.top_k;
  for (int32_t e = thread; e < args.experts; e += kThreads) counts[e] = 0;
  if (thread < 2) starts[thread] = 0;
  __syncthreads();
  for (int32_t i = thread; i < all; i += kThreads) atomicAdd(counts + __ldcg(plan.chosen + i), 1);
  __syncthreads();
  for (int32_t e = thread; e < expert; e += kThreads) {
    atomicAdd(starts, counts[e]);
    atomicAdd(starts + 1, (counts[e] + kMoeTileTokens - 1) / kMoeTileTokens);
  }
  __syncthreads();
  const int32_t first = starts[0], first_tile = starts[1], count = counts[expert];
  const int32_t tiles = (count + kMoeTileTokens - 1) / kMoeTileTokens;
  for (int32_t i = thread; i < tiles; i += kThreads) {
    const int32_t begin = i * kMoeTileTokens;
    plan.tiles[first_tile + i] = {expert, first + begin, min(count - begin, kMoeTileTokens)};
  }
  if (thread == 0 && expert == args.experts - 1) *plan.tile_count = first_tile + tiles;
  if (count == 0) return;
  int32_t done = first;
  for (int32_t start = 0; start < all; start += kThreads) {
    const int32_t i = start + thread;
    const bool own = i < all && __ldcg(plan.chosen + i) == expert;
    const Place place = place_in_block(own, sums);
    if (own) plan.entries[done + place.before] = i;
    done += place.total;
  }
}

}  // namespace

cudaError_t moe_route(const MoePlan& plan, const CudaTarget& target) {
  const MoeArgs& args = plan.args;
  const unsigned experts = unsigned(args.experts), tokens = unsigned(args.tokens);
  if (plan.alone) return launch(target, {experts, kThreads}, moe_score_one, plan);
  const dim3 scoring((experts + 31) / 32, unsigned(plan.slices),
                     (tokens + kScoredTokens - 1) / kScoredTokens);
  cudaError_t error = launch(target, {scoring, kThreads}, moe_score_many, plan);
  if (error == cudaSuccess) {
    error = launch(target, {tokens, kThreads, MoeChoice::bytes(args)}, moe_choose_many, plan);
  }
  if (error == cudaSuccess && !plan.local_lists) {
    error = launch(target, {experts, kThreads, 4 * size_t(args.experts)}, moe_list, plan);
  }
  return error;
}

}  // namespace nibblet
