#pragma once

#include "kernels/cuda/launch.h"
#include "kernels/synthetic/draw.h"

namespace nibblet {

/// draw() on CUDA: the same bytes. args.table and args.out are device memory; the table is aligned to its entries. Fastest
/// where args.first is a multiple of 16 and args.out 16-byte aligned, otherwise byte by byte.
cudaError_t draw_cuda(const DrawArgs& args, const CudaTarget& target);

}  // namespace nibblet
