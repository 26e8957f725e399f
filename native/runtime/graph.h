#pragma once

#include <memory>
#include <vector>

#include "native/runtime/command.h"
#include "native/runtime/tensor.h"

namespace nibblet {

/// A recorded list of commands and the tensor that each replay reports. Immutable; keeps all that it uses alive.
struct Graph {
  std::vector<std::shared_ptr<Command>> commands;
  Tensor result;      ///< empty: nothing is reported
  bool result_rows;   ///< report the first Step::row_count rows of result instead of all of it
};

}  // namespace nibblet
