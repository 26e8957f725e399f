#pragma once

#include <vector>

#include "native/runtime/cuda/execution.h"
#include "native/runtime/load_part.h"

namespace nibblet {

/// Reads the parts into staged memory, many of them at a time, and enqueues the copies and kernels that make the weight of them.
/// Throws BAD_FORMAT for what is wrong with the files.
void upload_weight(const CudaExecution& execution, const Weight& weight, const std::vector<LoadPart>& parts);

}  // namespace nibblet
