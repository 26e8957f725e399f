#pragma once

#include "kernels/cuda/launch.h"
#include "kernels/embed/embed.h"

namespace nibblet {

/// embed() on CUDA. All pointers, args.step and those inside the step too, are device memory.
/// @param capacity  most tokens of a step; sizes the launch
cudaError_t embed_cuda(const EmbedArgs& args, int32_t capacity, const CudaTarget& target);

}  // namespace nibblet
