#include "kernels/attention/kept.cuh"
#include "kernels/attention/launches.h"

namespace nibblet {
namespace {

using namespace attention_device;

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;

__device__ float sum_of_warp(float value) {
  for (int apart = 16; apart > 0; apart /= 2) value += __shfl_xor_sync(~0u, value, apart);
  return value;
}

/// Block (head, token). Each warp takes every fourth position with a running maximum of its own.
__global__ void __launch_bounds__(kThreads) plain_kernel(const AttentionArgs args) {
  grid_dependency_launch();
  const int32_t head = int32_t(blockIdx.x);
  const int32_t token = int32_t(blockIdx.y);
  const int32_t group = args.heads / args.kv_heads;
  const int32_t kv_head = head / group;
  const int32_t lane = int32_t(threadIdx.x) % 32;
  const int32_t warp = int32_t(threadIdx.x) / 32;
  __shared__ float query[kMaxCudaHeadDim];
  __shared__ float sums[kWarps][kMaxCudaHeadDim];
  __shared__ float largest_of[kWarps], total_of[kWarps];
  grid_dependency_wait();

  const Step& step = *args.step;
  if (token >= step.tokens) return;
  const int32_t index = step.sequence_of[token];
  const Sequence sequence = step.sequences[index];
  if (!is_live(sequence, args.slots)) return;
  const int32_t position = sequence.position + token - sequence.first;
  if (head % group == 0) {
    for (int32_t i = int32_t(threadIdx.x); i < 2 * args.head_dim; i += kThreads) {
      append_element(args, index, position, token, CachePart(i / args.head_dim), kv_head, i % args.head_dim);
    }
  }

  // Of this step's positions the cache knows nothing yet.
  const auto read = [&](CachePart part, int32_t j, int32_t i) {
    if (j < sequence.position) {
      return read_element(args.cache, args.cache_type, cache_index(args, index, j, part, kv_head) + i) *
             cache_scale(args, part);
    }
    const size_t from = fresh_index(args, sequence.first + j - sequence.position, part, kv_head);
    return kept(args, part, read_element(args.qkv, args.type, from + i));
  };
  for (int32_t i = int32_t(threadIdx.x); i < args.head_dim; i += kThreads) {
    query[i] = read_element(args.qkv, args.type, size_t(token) * qkv_row(args) + head * args.head_dim + i);
  }
  for (int32_t i = lane; i < args.head_dim; i += 32) sums[warp][i] = 0;
  __syncthreads();
  float largest = -INFINITY;
  float total = 0;
  for (int32_t j = warp; j <= position; j += kWarps) {
    float product = 0;
#pragma unroll 1
    for (int32_t i = lane; i < args.head_dim; i += 32) product = fmaf(query[i], read(kKey, j, i), product);
    const float score = sum_of_warp(product) * args.scale;
    const float before = largest;
    largest = fmaxf(largest, score);
    const float offset = largest == -INFINITY ? 0 : largest;
    const float rescale = std::exp(before - offset);
    const float weight = std::exp(score - offset);
    total = fmaf(total, rescale, weight);
#pragma unroll 1
    for (int32_t i = lane; i < args.head_dim; i += 32) {
      sums[warp][i] = fmaf(sums[warp][i], rescale, weight * read(kValue, j, i));
    }
  }
  if (lane == 0) {
    largest_of[warp] = largest;
    total_of[warp] = total;
  }
  __syncthreads();
  largest = -INFINITY;
  for (int w = 0; w < kWarps; ++w) largest = fmaxf(largest, largest_of[w]);
  const float offset = largest == -INFINITY ? 0 : largest;
  float rescale[kWarps];
  total = 0;
  for (int w = 0; w < kWarps; ++w) {
    rescale[w] = std::exp(largest_of[w] - offset);
    total = fmaf(total_of[w], rescale[w], total);
  }
  for (int32_t i = int32_t(threadIdx.x); i < args.head_dim; i += kThreads) {
    float sum = 0;
    for (int w = 0; w < kWarps; ++w) sum = fmaf(sums[w][i], rescale[w], sum);
    write_element(args.y, args.type, (size_t(token) * args.heads + head) * args.head_dim + i, sum / total);
  }
}

}  // namespace

cudaError_t attention_cuda_plain(const AttentionArgs& args, int32_t capacity, const CudaTarget& target) {
  const LaunchShape shape = {dim3(unsigned(args.heads), unsigned(capacity)), dim3(kThreads)};
  return launch(target, shape, plain_kernel, args);
}

}  // namespace nibblet
