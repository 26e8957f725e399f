#pragma once

#include "kernels/cuda/launch.h"
#include "kernels/mamba/mamba.h"

namespace nibblet {

/// mamba() on CUDA. All pointers, args.step and those inside the step too, are device memory; args.convolved and
/// args.scanned are not used.
/// Up to 64 tokens, *args.step with its arrays, the slots and both states are read before grid_dependency_wait(), while
/// earlier kernels still run: between what last wrote them and this launch there must be an edge that is not
/// programmatic, as the copy of a step or the start of a graph is.
/// @param capacity  most tokens of a step; sizes the launch
/// @param workspace, counters  mamba_cuda_scratch(args, capacity, target)
cudaError_t mamba_cuda(const MambaArgs& args, int32_t capacity, void* workspace, void* counters,
                       const CudaTarget& target);
CudaScratch mamba_cuda_scratch(const MambaArgs& args, int32_t capacity, const CudaTarget& target);

}  // namespace nibblet
