#pragma once

#include "kernels/attention/attention.h"
#include "kernels/cuda/launch.h"

namespace nibblet {

/// Widest head that the kernels take.
constexpr int32_t kMaxCudaHeadDim = 256;

/// Whether attend_cuda takes the layer: bf16 activations, a bf16 or e4m3 cache, head_dim 128, and what it reads in
/// pieces of 16 bytes aligned so.
bool attention_cuda_is_fast(const AttentionArgs& args);

/// Stores k and v of every live token.
cudaError_t append_cuda(const AttentionArgs& args, int32_t capacity, const CudaTarget& target);

/// Attends, on tensor cores. Positions of this step are taken from qkv, as the cache keeps them, and stored: a launch of
/// its own needs no other before it.
/// @param appended  append_cuda ran: everything is in the cache
cudaError_t attend_cuda(const AttentionArgs& args, int32_t capacity, bool appended, void* workspace,
                        void* counters, const CudaTarget& target);
CudaScratch attend_cuda_scratch(const AttentionArgs& args, int32_t capacity, const CudaTarget& target);

/// Appends and attends in any dtypes, head_dim up to kMaxCudaHeadDim. Each query head reads the cache for itself.
cudaError_t attention_cuda_plain(const AttentionArgs& args, int32_t capacity, const CudaTarget& target);

}  // namespace nibblet
