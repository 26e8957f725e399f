#pragma once

#include "kernels/attention/attention.h"
#include "kernels/cuda/launch.h"

namespace nibblet {

/// attention() on CUDA. All pointers, args.step and those inside the step too, are device memory.
/// Up to 64 tokens, *args.step with its arrays, the slots and what the cache has of earlier steps are read before
/// grid_dependency_wait(), while earlier kernels still run: between what last wrote them and this launch there must be
/// an edge that is not programmatic, as the copy of a step or the start of a graph is.
/// @param capacity  most tokens of a step; sizes the launch
/// @param workspace, counters  attention_cuda_scratch(args, capacity, target)
cudaError_t attention_cuda(const AttentionArgs& args, int32_t capacity, void* workspace, void* counters,
                           const CudaTarget& target);
CudaScratch attention_cuda_scratch(const AttentionArgs& args, int32_t capacity, const CudaTarget& target);

}  // namespace nibblet
