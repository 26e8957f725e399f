#pragma once

#include <atomic>
#include <memory>
#include <string>

#include "kernels/step.h"
#include "native/runtime/error.h"

namespace nibblet {

/// What a command sees while it runs.
struct Execution {
  const Step* step;  ///< null before a stream's first step
  int threads;
  const std::atomic<bool>* cancelled;
  const void* stream;  ///< whose identity, no more: for commands that depend on its order
};

struct CudaExecution;

/// One enqueued piece of work: an op with its operands bound, a load, a copy. It holds references to all that it touches.
class Command {
 public:
  virtual ~Command() = default;
  virtual const char* name() const = 0;
  /// Throws OP_FAILED when the step, null before a stream's first, asks for what cannot be. On the engine thread, before
  /// anything of the job runs.
  virtual void check(const Step*) const {}
  /// Runs on the host, on its engine thread. Throws Error on failure.
  virtual void run(const Execution& execution) = 0;
  /// Starts the work on a GPU (native/runtime/cuda/execution.h), or records it into a CUDA graph. Throws Error.
  virtual void enqueue(const CudaExecution&) {
    throw Error("OP_FAILED", std::string(name()) + " runs on the CPU alone: use device 'cpu' for it", name());
  }
};

/// Floating-point work above which a phase is cut into slices, so that cancellation is seen within about 10 ms.
constexpr double kSliceWork = 2e7;

/// Multiply-adds that one thread does in the time that waking the pool takes.
constexpr double kWakeWork = 20000;

/// Runs the phases of a kernel over the pool, with a barrier after each. `work` estimates the multiply-adds of a phase;
/// kernels give the same result for any number of slices. Returns early, between slices, once cancelled.
/// @param most  most(phase): slices that a phase can use. With one, the calling thread runs it, with no barrier after it.
template <class Args, class Most>
void run_phases(const Execution& execution, void (*kernel)(const Args&, int, int, int), int phases,
                const Args& args, double work, const Most& most);
/// As above for kernels whose phases all can use any number of slices.
template <class Args>
void run_phases(const Execution& execution, void (*kernel)(const Args&, int, int, int), int phases,
                const Args& args, double work);

/// As above for kernels with scratch per worker: never more slices than `threads`.
template <class Args, class Most>
void run_phases_unsliced(const Execution& execution, void (*kernel)(const Args&, int, int, int), int phases,
                         const Args& args, const Most& most);
template <class Args>
void run_phases_unsliced(const Execution& execution, void (*kernel)(const Args&, int, int, int), int phases,
                         const Args& args);

}  // namespace nibblet

#include "native/runtime/command_inl.h"
