#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "native/runtime/error.h"
#include "native/runtime/graph.h"
#include "native/runtime/step_input.h"

namespace nibblet {

/// How a piece of work ended. `error` is set when it failed or never ran; `cancelled` when it was cut short on request.
struct Outcome {
  std::optional<Error> error;
  bool cancelled = false;
  std::vector<uint8_t> bytes;
};

/// Called once, on a thread of the device, or on the closing thread for work that never ran.
using Completion = std::function<void(Outcome)>;
/// Set by the host to cut short the work it was given with.
using CancelFlag = std::shared_ptr<std::atomic<bool>>;

/// One entry of a stream's queue: a command, a graph, a new step or a read, in any combination and in that order.
struct Job {
  std::shared_ptr<const StepInput> input;  ///< becomes the step of this job and of those after it
  std::shared_ptr<Command> command;
  std::shared_ptr<const Graph> graph;
  Tensor tensor;  ///< what is read back; a graph reports its own result
  CancelFlag cancel;
  Completion done;
};

/// What a job reads back, given its step, and how much of it. Throws OP_FAILED when the step wants more rows than there are.
struct Report {
  Tensor tensor;  ///< empty: nothing
  size_t bytes = 0;
};
Report report_of(const Job& job, const Step* step);

/// Runs the jobs of one stream in order. Engine thread, but for drain().
class Executor {
 public:
  virtual ~Executor() = default;
  /// Starts a job. `finish` is called once its work is done: at once, or later on another thread, in the order of jobs.
  virtual void run(Job job, Completion finish) = 0;
  /// No further job can be started before one finishes; Device::notify is called then.
  virtual bool full() { return false; }
  /// Returns once all that was started has finished.
  virtual void drain() {}
  /// See Stream::time_gaps.
  virtual std::vector<float> time_gaps(bool) { return {}; }
};

}  // namespace nibblet
