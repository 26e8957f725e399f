#pragma once

#include <atomic>
#include <memory>
#include <vector>

#include "native/runtime/command.h"
#include "native/runtime/tensor.h"

namespace nibblet {

class Stream;

/// A recorded list of commands and the tensor that each replay reports. Immutable; keeps all that it uses alive.
struct Graph {
  std::vector<std::shared_ptr<Command>> commands;
  Tensor result;             ///< empty: nothing is reported
  bool result_rows = false;  ///< report the first Step::row_count rows of result instead of all of it
  std::weak_ptr<const Stream> stream;  ///< the one that it was captured on, whose scratch its commands use
  mutable std::shared_ptr<void>
      compiled;  ///< what the executor made of it at the first launch; engine thread only
  mutable std::atomic<int> kernels = 0;  ///< of a replay on a GPU, once compiled
};

}  // namespace nibblet
