#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/launch.h"

namespace nibblet {

/// Reads device memory as fast as a GPU does and nothing else: what the kernels that are bound by it are measured against.
/// sums[i] gets the sum of the 64-bit words that block i of read_roofline_sums(target) read; together they read each once.
/// @param data  16-byte aligned, not written while it is read
/// @param bytes  a multiple of 16, otherwise cudaErrorInvalidValue
cudaError_t read_roofline_cuda(const void* data, size_t bytes, uint64_t* sums, const CudaTarget& target);
int read_roofline_sums(const CudaTarget& target);

}  // namespace nibblet
