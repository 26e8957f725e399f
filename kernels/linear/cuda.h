#pragma once

#include "kernels/cuda/launch.h"
#include "kernels/linear/linear.h"

namespace nibblet {

/// linear() on CUDA, without exact mode and W4A4. All pointers are device memory. args.count is the most rows that a step
/// can have and sizes the launch; how many there are is read from `step`: its row_count where args.rows is set (to
/// anything: the rows are step->rows), otherwise its tokens. args.prepared is not used.
/// @param workspace, counters  linear_cuda_scratch(args, target)
cudaError_t linear_cuda(const LinearArgs& args, const Step* step, void* workspace, void* counters,
                        const CudaTarget& target);
CudaScratch linear_cuda_scratch(const LinearArgs& args, const CudaTarget& target);

}  // namespace nibblet
