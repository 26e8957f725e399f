#pragma once

#include <cuda_runtime_api.h>

#include <atomic>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "native/runtime/cuda/device.h"
#include "native/runtime/cuda/handle.h"
#include "native/runtime/cuda/staging.h"
#include "native/runtime/cuda/step_memory.h"
#include "native/runtime/job.h"

namespace nibblet {

/// Starts jobs on a CUDA stream of its own, a few ahead of the GPU, and finishes them from a second thread as their events
/// come. A graph becomes a CUDA graph at its first launch. A job is cancelled only before it starts.
class CudaExecutor : public Executor {
 public:
  CudaExecutor(std::shared_ptr<CudaDevice> device, int threads);
  ~CudaExecutor() override;

  void run(Job job, Completion finish) override;
  bool full() override;
  void drain() override;
  std::vector<float> time_gaps(bool on) override;

 private:
  /// A job whose work is on the stream; kept alive until the GPU is done with it.
  struct Started {
    Job job;
    Completion finish;
    Outcome outcome;
    CudaEvent event;
    CudaEvent begun, ended;  // around the graph, while gaps are timed
    PinnedMemory result;
    size_t result_bytes = 0;
  };

  void start(Started& started);
  void compile(const Graph& graph, const Execution& host);
  CudaEvent event();
  CudaEvent timestamp();
  PinnedMemory result_memory(size_t bytes);
  void complete();
  void add_gap(Started& started);

  const std::shared_ptr<CudaDevice> device_;
  const int threads_;
  CudaTarget target_;
  /// Outside of graphs each kernel waits for the one before it: weights that were just packed are safe to read early then.
  CudaTarget eager_target_;
  const CudaStream stream_;
  StepMemory step_memory_;
  CudaStaging staging_;
  std::shared_ptr<const StepInput> input_;  // what step_memory_ holds
  std::optional<Error> failed_;             // of the last job that was to be started
  std::atomic<bool> timing_{false};
  CudaEvent last_ended_;  // of the job before, when that was a timed graph; completer's

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Started> started_;
  std::vector<CudaEvent> events_;      // not in use
  std::vector<PinnedMemory> results_;  // not in use
  std::deque<float> gaps_;
  bool stopping_ = false;
  std::thread completer_;
};

}  // namespace nibblet
