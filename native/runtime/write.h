#pragma once

#include <memory>
#include <vector>

#include "native/runtime/command.h"
#include "native/runtime/tensor.h"

namespace nibblet {

/// Fills a tensor with bytes from the host, as many as it has.
std::unique_ptr<Command> write_tensor(const Tensor& to, std::vector<uint8_t> data);

}  // namespace nibblet
