#pragma once

#include "kernels/cuda/launch.h"
#include "kernels/sample/sample.h"

namespace nibblet {

/// sample() on CUDA. All pointers, args.step and those inside the step too, are device memory; args.scratch is not used.
/// @param capacity  most rows of a step; sizes the launch
/// @param workspace, counters  sample_cuda_scratch(args, capacity, target)
cudaError_t sample_cuda(const SampleArgs& args, int32_t capacity, void* workspace, void* counters,
                        const CudaTarget& target);
CudaScratch sample_cuda_scratch(const SampleArgs& args, int32_t capacity, const CudaTarget& target);

}  // namespace nibblet
