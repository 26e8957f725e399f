#include "kernels/attention/cuda.h"
#include "kernels/attention/launches.h"

namespace nibblet {
namespace {

/// Most tokens of a step that are appended and attended in one launch. There every token converts those before it.
constexpr int32_t kOneLaunchTokens = 64;

bool is_aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

}  // namespace

bool attention_cuda_is_fast(const AttentionArgs& args) {
  return args.head_dim == 128 && args.type == DType::bf16 &&
         (args.cache_type == DType::bf16 || args.cache_type == DType::e4m3) && is_aligned(args.qkv) &&
         is_aligned(args.cache) && is_aligned(args.y);
}

cudaError_t attention_cuda(const AttentionArgs& args, int32_t capacity, void* workspace, void* counters,
                           const CudaTarget& target) {
  if (args.head_dim > kMaxCudaHeadDim) return cudaErrorInvalidValue;
  if (!attention_cuda_is_fast(args)) return attention_cuda_plain(args, capacity, target);
  const bool append_first = capacity > kOneLaunchTokens;
  if (append_first) {
    if (cudaError_t error = append_cuda(args, capacity, target); error != cudaSuccess) return error;
  }
  return attend_cuda(args, capacity, append_first, workspace, counters, target);
}

CudaScratch attention_cuda_scratch(const AttentionArgs& args, int32_t capacity, const CudaTarget& target) {
  if (!attention_cuda_is_fast(args)) return {};
  return attend_cuda_scratch(args, capacity, target);
}

}  // namespace nibblet
