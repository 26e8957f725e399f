#pragma once

#include "kernels/cuda/launch.h"
#include "kernels/pack/pack.h"

namespace nibblet {

/// pack() on CUDA: elements, block_scales and matrix are device memory. args.bad is not used: the caller checks scales.
/// Layouts rows, columns and fragments; the sources may be unaligned.
cudaError_t pack_cuda(const PackArgs& args, const CudaTarget& target);

}  // namespace nibblet
