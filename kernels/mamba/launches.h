#pragma once

#include "kernels/cuda/launch.h"
#include "kernels/mamba/mamba.h"

namespace nibblet {

/// Whether the kernels that know the shape take the layer: bf16, kernel 4, state 128, head_dim a multiple of 4, and what they
/// read 16 bytes at a time aligned so. Others take every layer with a kernel of 1 to 8.
bool mamba_cuda_is_fast(const MambaArgs& args);

/// Steps of few tokens: everything in one launch, a block for each sequence and a part of a head. Any ragged step is
/// computed rightly; time grows with the longest sequence.
/// @param gated    [capacity, inner]
/// @param arrived  [capacity, groups], zero
cudaError_t mamba_cuda_mix(const MambaArgs& args, int32_t capacity, float* gated, uint32_t* arrived,
                           const CudaTarget& target);

/// The same for capacities above 1 of what is fast, without its latency for one token but nearer to what memory gives.
cudaError_t mamba_cuda_mix_batch(const MambaArgs& args, int32_t capacity, float* gated, uint32_t* arrived,
                                 const CudaTarget& target);

/// Steps of many tokens: convolution, scan and norm, a launch each.
/// @param workspace  mamba_cuda_phases_bytes(args, capacity)
cudaError_t mamba_cuda_phases(const MambaArgs& args, int32_t capacity, void* workspace,
                              const CudaTarget& target);
size_t mamba_cuda_phases_bytes(const MambaArgs& args, int32_t capacity);

}  // namespace nibblet
