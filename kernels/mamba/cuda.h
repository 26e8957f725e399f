#pragma once

#include "kernels/cuda/launch.h"
#include "kernels/mamba/mamba.h"

namespace nibblet {

/// mamba() on CUDA. All pointers, args.step and those inside the step too, are device memory; args.convolved and
/// args.scanned are not used.
/// @param capacity  most tokens of a step; sizes the launch
/// @param workspace, counters  mamba_cuda_scratch(args, capacity, target)
cudaError_t mamba_cuda(const MambaArgs& args, int32_t capacity, void* workspace, void* counters,
                       const CudaTarget& target);
CudaScratch mamba_cuda_scratch(const MambaArgs& args, int32_t capacity, const CudaTarget& target);

}  // namespace nibblet
