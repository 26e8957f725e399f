#pragma once

#include <cuda_runtime_api.h>

namespace nibblet {

/// Success when the kernels of this build run on the current device, otherwise why not.
cudaError_t probe_kernels();

}  // namespace nibblet
