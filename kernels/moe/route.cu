#include "kernels/moe/route.cuh"
#include "kernels/numerics/bf16.h"

namespace nibblet {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
/// Tokens that choose in one block, a warp each.
constexpr int kChoosing = 2;
/// Vectors of router weights that a thread holds before x is known.
constexpr int kAhead = 3;

__device__ float warp_sum(float value) {
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
  if (plan.vectors) {
    float4 weights[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int32_t k = (thread + i * kThreads) * 4;
      weights[i] = k < hidden ? weight4(args, row, k) : make_float4(0, 0, 0, 0);
    }
    grid_dependency_wait();
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
    for (int32_t k = (thread + kAhead * kThreads) * 4; k < hidden; k += kThreads * 4) {
      const float4 more = load4(args.x + k);
      dot = dot4(more, weight4(args, row, k), dot);
      squares = dot4(more, more, squares);
    }
  } else {
    grid_dependency_wait();
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
  if (thread == 0 && plan.step->tokens > 0) {
    for (int w = 1; w < kWarps; ++w) {
      dot += sums[0][w];
      squares += sums[1][w];
    }
    plan.scores[blockIdx.x] = sigmoid(dot * inverse_root(args, squares));
  }
}

/// x̂ in bf16 of one token a warp.
__device__ void normalise(const MoePlan& plan, int32_t token) {
  const MoeArgs& args = plan.args;
  const int32_t lane = int32_t(threadIdx.x) % 32;
  const float* x = args.x + size_t(token) * size_t(args.hidden);
  uint16_t* to = plan.normed + size_t(token) * size_t(plan.normed_stride);
  float squares = 0;
  for (int32_t k = lane; k < args.hidden; k += 32) {
    const float value = __ldcg(x + k);
    squares = fmaf(value, value, squares);
  }
  const float inverse = inverse_root(args, warp_sum(squares));
  for (int32_t k = lane; k < plan.normed_stride; k += 32) {
    to[k] = k < args.hidden ? bf16_from_float(__ldcg(x + k) * inverse * args.norm[k]) : uint16_t(0);
  }
}

/// Blocks (i, j): kWarps experts from i · kWarps on, one a warp, for tokens from j · kMoeTileTokens on; the last i instead
/// writes x̂ of those tokens.
__global__ void __launch_bounds__(kThreads) moe_score_many(const MoePlan plan) {
  grid_dependency_launch();
  grid_dependency_wait();
  const MoeArgs& args = plan.args;
  const int32_t warp = int32_t(threadIdx.x) / 32, lane = int32_t(threadIdx.x) % 32, hidden = args.hidden;
  const int32_t first = int32_t(blockIdx.y) * kMoeTileTokens;
  const int32_t count = min(plan.step->tokens - first, kMoeTileTokens);
  if (count <= 0) return;
  if (blockIdx.x == gridDim.x - 1) {
    for (int32_t t = warp; t < count; t += kWarps) normalise(plan, first + t);
    return;
  }
  const int32_t expert = int32_t(blockIdx.x) * kWarps + warp;
  if (expert >= args.experts) return;
  const float* row = args.router + size_t(expert) * size_t(hidden);
  const float* x = args.x + size_t(first) * size_t(hidden);
  float dot[kMoeTileTokens] = {}, squares[kMoeTileTokens] = {};
  if (plan.vectors) {
    for (int32_t k = lane * 4; k < hidden; k += 128) {
      const float4 weights = weight4(args, row, k);
#pragma unroll
      for (int t = 0; t < kMoeTileTokens; ++t) {
        if (t >= count) continue;
        const float4 value = *reinterpret_cast<const float4*>(x + size_t(t) * size_t(hidden) + k);
        dot[t] = dot4(value, weights, dot[t]);
        squares[t] = dot4(value, value, squares[t]);
      }
    }
  } else {
    for (int32_t k = lane; k < hidden; k += 32) {
      const float weight = row[k] * args.norm[k];
#pragma unroll
      for (int t = 0; t < kMoeTileTokens; ++t) {
        if (t >= count) continue;
        const float value = x[size_t(t) * size_t(hidden) + k];
        dot[t] = fmaf(value, weight, dot[t]);
        squares[t] = fmaf(value, value, squares[t]);
      }
    }
  }
#pragma unroll
  for (int t = 0; t < kMoeTileTokens; ++t) {
    const float logit = warp_sum(dot[t]) * inverse_root(args, warp_sum(squares[t]));
    if (lane == 0 && t < count) {
      plan.scores[size_t(first + t) * size_t(args.experts) + size_t(expert)] = sigmoid(logit);
    }
  }
}

/// The choice of one token a warp.
__global__ void __launch_bounds__(kThreads) moe_choose_many(const MoePlan plan) {
  grid_dependency_launch();
  grid_dependency_wait();
  const MoeArgs& args = plan.args;
  const int32_t warp = int32_t(threadIdx.x) / 32, lane = int32_t(threadIdx.x) % 32;
  const size_t token = size_t(blockIdx.x) * kChoosing + size_t(warp);
  if (int32_t(token) >= plan.step->tokens) return;
  const MoeChoice choice(args, dynamic_shared<uint8_t>() + size_t(warp) * MoeChoice::bytes(args));
  const float* scores = plan.scores + token * size_t(args.experts);
  for (int32_t e = lane; e < args.experts; e += 32) choice.set(e, __ldcg(scores + e), args.bias[e]);
  __syncwarp();
  moe_choose(args, choice);
  moe_publish(args, choice, plan.chosen + token * size_t(args.top_k),
              plan.weights + token * size_t(args.top_k));
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
  const dim3 scoring((experts + kWarps - 1) / kWarps + 1, (tokens + kMoeTileTokens - 1) / kMoeTileTokens);
  cudaError_t error = launch(target, {scoring, kThreads}, moe_score_many, plan);
  if (error == cudaSuccess) {
    error = launch(target,
                   {(tokens + kChoosing - 1) / kChoosing, 32 * kChoosing, kChoosing * MoeChoice::bytes(args)},
                   moe_choose_many, plan);
  }
  if (error == cudaSuccess) {
    error = launch(target, {experts, kThreads, 4 * size_t(args.experts)}, moe_list, plan);
  }
  return error;
}

}  // namespace nibblet
