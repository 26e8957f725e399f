#include "kernels/cuda/warp.h"
#include "kernels/moe/route.cuh"
#include "kernels/numerics/bf16.h"

namespace nibblet {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
/// Tokens that a block scores.
constexpr int kScoredTokens = 16;
/// Threads that choose for one token, how many of them share the sum of a logit, and parts of it that each reads at once.
constexpr int kChoosing = 512;
constexpr int kAdders = 4;
constexpr int kParts = 6;
/// Vectors of router weights that a thread holds before x is known.
constexpr int kAhead = 3;

__device__ float inverse_root(const MoeArgs& args, float squares) {
  return 1.0f / sqrtf(squares / float(args.hidden) + args.epsilon);
}

__device__ float sigmoid(float logit) { return 1.0f / (1.0f + expf(-logit)); }

/// Four products of router and norm.
__device__ float4 weight4(const MoeArgs& args, const float* row, int32_t k) {
  const float4 w = *reinterpret_cast<const float4*>(row + k);
  const float4 n = *reinterpret_cast<const float4*>(args.norm + k);
  return {w.x * n.x, w.y * n.y, w.z * n.z, w.w * n.w};
}

__device__ float dot4(float4 a, float4 b, float sum) {
  return fmaf(a.x, b.x, fmaf(a.y, b.y, fmaf(a.z, b.z, fmaf(a.w, b.w, sum))));
}

/// The score of one expert a block, for the first token; for plans with `vectors`. x̂ · router = (x · (norm · router)) / root.
__global__ void __launch_bounds__(kThreads) moe_score_one(const MoePlan plan) {
  __shared__ float sums[2][kWarps];
  grid_dependency_launch();
  const MoeArgs& args = plan.args;
  const int32_t thread = int32_t(threadIdx.x), hidden = args.hidden;
  const float* row = args.router + size_t(blockIdx.x) * size_t(hidden);
  float dot = 0, squares = 0;
  float4 weights[kAhead];
#pragma unroll
  for (int i = 0; i < kAhead; ++i) {
    const int32_t k = (thread + i * kThreads) * 4;
    weights[i] = k < hidden ? weight4(args, row, k) : make_float4(0, 0, 0, 0);
  }
  grid_dependency_wait();
  const bool live = plan.step->tokens > 0;
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
template <bool vectors>
__device__ float4 read4(const MoeArgs& args, const float* row, int32_t k) {
  if constexpr (vectors) return k < args.hidden ? load4(row + k) : make_float4(0, 0, 0, 0);
  const auto value = [&](int32_t i) { return k + i < args.hidden ? __ldcg(row + k + i) : 0.0f; };
  return {value(0), value(1), value(2), value(3)};
}

/// Blocks (i, j, l): what inputs [kMoeSlice · j, kMoeSlice · (j + 1)) add to the logits of 32 experts, before the norm's
/// root, and to the squares of kScoredTokens tokens. A lane has an expert, and a warp an equal part of the inputs.
/// What a step has not it asks for only together with how many tokens it has.
template <bool vectors>
__global__ void __launch_bounds__(kThreads, 3) moe_score_many(const MoePlan plan) {
  constexpr int kOwn = kMoeSlice / kWarps;
  constexpr int kOwnTokens = kScoredTokens / kWarps;
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
    const float4 norm = read4<vectors>(args, args.norm, k);
    float4 row = make_float4(0, 0, 0, 0);
    if (expert < args.experts) {
      row = read4<vectors>(args, args.router + size_t(expert) * size_t(args.hidden), k);
    }
    weights[i] = {row.x * norm.x, row.y * norm.y, row.z * norm.z, row.w * norm.w};
  }

  grid_dependency_wait();
  const int32_t first = int32_t(blockIdx.z) * kScoredTokens;
  // 32 threads, a warp, read what a token has here.
  static_assert(kMoeSlice == 128);
  float4 own[kOwnTokens];
#pragma unroll
  for (int i = 0; i < kOwnTokens; ++i) {
    const int32_t t = first + warp + i * kWarps;
    own[i] = make_float4(0, 0, 0, 0);
    if (t < args.tokens) {
      own[i] = read4<vectors>(args, args.x + size_t(t) * size_t(args.hidden), first_input + lane * 4);
    }
  }
  const int32_t count = min(plan.step->tokens - first, kScoredTokens);
  if (count <= 0) return;
#pragma unroll
  for (int i = 0; i < kOwnTokens; ++i) {
    const int32_t t = warp + i * kWarps;
    inputs[t][lane] = own[i];
    if (blockIdx.x > 0 || t >= count) continue;
    const float squares = warp_sum(dot4(own[i], own[i], 0.0f));
    if (lane == 0) plan.squares[size_t(slice) * size_t(args.tokens) + size_t(first + t)] = squares;
  }
  __syncthreads();
#pragma unroll 2
  for (int t = 0; t < count; ++t) {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kOwn / 4; ++i) sum = dot4(inputs[t][warp * (kOwn / 4) + i], weights[i], sum);
    sums[warp][t][lane] = sum;
  }
  __syncthreads();
#pragma unroll 1
  for (int32_t t = warp; t < count; t += kWarps) {
    float sum = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += sums[w][t][lane];
    const size_t row = size_t(slice) * size_t(args.tokens) + size_t(first + t);
    if (expert < args.experts) plan.scores[row * size_t(args.experts) + size_t(expert)] = sum;
  }
}

size_t choosing_bytes(const MoeArgs& args) {
  return MoeChoice::bytes(args) + size_t(kAdders) * size_t(args.experts) * sizeof(float);
}

/// One token a block: its scores, then the choice by the first warp, while the others write x̂ in bf16. Like the experts'
/// kernels it runs once a layer, after its code has left the instruction cache: unrolling costs more than it saves.
template <bool vectors>
__global__ void __launch_bounds__(kChoosing) moe_choose_many(const MoePlan plan) {
  grid_dependency_launch();
  const MoeArgs& args = plan.args;
  const MoeChoice choice(args, dynamic_shared<uint8_t>());
  float* const partial = reinterpret_cast<float*>(dynamic_shared<uint8_t>() + MoeChoice::bytes(args));
  const int32_t thread = int32_t(threadIdx.x);
  const size_t token = blockIdx.x, tokens = size_t(args.tokens), experts = size_t(args.experts);
  const float bias = thread < args.experts ? args.bias[thread] : 0.0f;
  // The threads behind the first warp have four values each.
  const int32_t first = (thread - 32) * 4, stride = (kChoosing - 32) * 4;
  grid_dependency_wait();
  const float* row = args.x + token * size_t(args.hidden);
  float4 value = make_float4(0, 0, 0, 0);
  if (first >= 0) value = read4<vectors>(args, row, first);
  float squares = 0;
#pragma unroll 1
  for (int32_t i = thread % 32; i < plan.slices; i += 32) {
    squares += __ldcg(plan.squares + size_t(i) * tokens + token);
  }
  const int32_t adder = thread / (kChoosing / kAdders);
#pragma unroll 1
  for (int32_t e = thread % (kChoosing / kAdders); e < args.experts; e += kChoosing / kAdders) {
    const float* from = plan.scores + token * experts + size_t(e);
    float sum = 0;
#pragma unroll 1
    for (int32_t start = adder; start < plan.slices; start += kAdders * kParts) {
      float parts[kParts];
#pragma unroll
      for (int i = 0; i < kParts; ++i) {
        const int32_t slice = start + i * kAdders;
        parts[i] = slice < plan.slices ? __ldcg(from + size_t(slice) * tokens * experts) : 0.0f;
      }
#pragma unroll
      for (int i = 0; i < kParts; ++i) sum += parts[i];
    }
    partial[size_t(adder) * experts + size_t(e)] = sum;
  }
  // Asked for with the rest.
  if (int32_t(token) >= plan.step->tokens) return;
  const float inverse = inverse_root(args, warp_sum(squares));
  __syncthreads();
#pragma unroll 1
  for (int32_t e = thread; e < args.experts; e += kChoosing) {
    float logit = 0;
#pragma unroll
    for (int i = 0; i < kAdders; ++i) logit += partial[size_t(i) * experts + size_t(e)];
    choice.set(e, sigmoid(logit * inverse), e == thread ? bias : args.bias[e]);
  }
  __syncthreads();
  if (thread < 32) {
    moe_choose(args, choice);
    moe_publish(args, choice, plan.chosen + token * size_t(args.top_k),
                plan.weights + token * size_t(args.top_k));
    return;
  }
  uint16_t* to = plan.normed + token * size_t(plan.normed_stride);
#pragma unroll 1
  for (int32_t k = first; k < plan.normed_stride; k += stride) {
    const float4 norm = read4<vectors>(args, args.norm, k);
    *reinterpret_cast<uint2*>(to + k) = {
        bf16_pair_from_floats(value.x * inverse * norm.x, value.y * inverse * norm.y),
        bf16_pair_from_floats(value.z * inverse * norm.z, value.w * inverse * norm.w)};
    if (k + stride < plan.normed_stride) value = read4<vectors>(args, row, k + stride);
  }
}

template <bool vectors>
cudaError_t route_many(const MoePlan& plan, const CudaTarget& target) {
  const MoeArgs& args = plan.args;
  const dim3 scoring(unsigned(args.experts + 31) / 32, unsigned(plan.slices),
                     unsigned(args.tokens + kScoredTokens - 1) / kScoredTokens);
  const size_t choosing = choosing_bytes(args);
  cudaError_t error = allow_shared_memory(moe_choose_many<vectors>, choosing);
  if (error == cudaSuccess) error = launch(target, {scoring, kThreads}, moe_score_many<vectors>, plan);
  if (error != cudaSuccess) return error;
  return launch(target, {unsigned(args.tokens), kChoosing, choosing}, moe_choose_many<vectors>, plan);
}

}  // namespace

cudaError_t moe_route(const MoePlan& plan, const CudaTarget& target) {
  if (plan.alone) return launch(target, {unsigned(plan.args.experts), kThreads}, moe_score_one, plan);
  const cudaError_t error = plan.vectors ? route_many<true>(plan, target) : route_many<false>(plan, target);
  return error == cudaSuccess && !plan.local_lists ? moe_list(plan, target) : error;
}

}  // namespace nibblet
