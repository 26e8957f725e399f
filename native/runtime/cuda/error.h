#pragma once

#include <cuda_runtime_api.h>

#include <string>

#include "native/runtime/error.h"

namespace nibblet {

/// The typed error of a CUDA call that failed: OUT_OF_MEMORY, NO_DEVICE, or STREAM_FAILED for all that leaves a stream unusable.
Error cuda_error(cudaError_t code, const std::string& what);

inline void check_cuda(cudaError_t code, const char* what) {
  if (code != cudaSuccess) throw cuda_error(code, what);
}

}  // namespace nibblet
