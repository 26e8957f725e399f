#pragma once

#include "kernels/cuda/launch.h"
#include "kernels/moe/moe.h"
#include "kernels/step.h"

namespace nibblet {

/// moe() on CUDA, without exact mode. All pointers are device memory. args.tokens is the most tokens that a step can have
/// and sizes the launch; how many there are is step->tokens. args.scratch is not used.
/// @param statistics  counters as moe_statistics adds to, or null
/// @param workspace, counters  moe_cuda_scratch(args, target)
cudaError_t moe_cuda(const MoeArgs& args, const Step* step, uint64_t* statistics, void* workspace,
                     void* counters, const CudaTarget& target);
CudaScratch moe_cuda_scratch(const MoeArgs& args, const CudaTarget& target);

}  // namespace nibblet
