#pragma once

#include <memory>

#include "native/runtime/command.h"
#include "native/runtime/tensor.h"

namespace nibblet {

/// Touches and then reads all of `source` (a multiple of 512 bytes, 64-byte aligned) `times` times with the stream's threads and writes the
/// seconds of the fastest time to `result`, f32 [1]. Throws INVALID_OPTION.
std::unique_ptr<Command> measure_read(const Tensor& source, const Tensor& result, int times);

}  // namespace nibblet
