#pragma once

#include <atomic>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "native/runtime/device.h"
#include "native/runtime/job.h"

namespace nibblet {

/// An ordered queue of work on a device. Methods are called from one host thread and never block on the device, except
/// close(). A failing command poisons the stream: what waits completes with its error and later calls throw it.
class Stream : public std::enable_shared_from_this<Stream> {
 public:
  Stream(std::shared_ptr<Device> device, int threads);
  ~Stream();

  const std::shared_ptr<Device>& device() const { return device_; }
  int threads() const { return threads_; }

  /// Throws DISPOSED when closed, or the error that poisoned the stream.
  void throw_if_unusable();
  void enqueue(std::shared_ptr<Command> command);
  void begin_capture();
  /// Throws INVALID_OPTION when there is no capture, or when `result_rows` is asked of a result that has no rows.
  std::shared_ptr<Graph> end_capture(Tensor result, bool result_rows);
  void abandon_capture() { recording_.reset(); }
  /// Makes `input` the step of the commands enqueued after it.
  void step(std::shared_ptr<const StepInput> input);
  /// Throws INVALID_OPTION for a graph of another stream.
  void launch(std::shared_ptr<const Graph> graph, std::shared_ptr<const StepInput> input, CancelFlag cancel,
              Completion done);
  void sync(Completion done);
  void read(Tensor tensor, Completion done);

  /// Whether launches from here on are timed. Returns what was found since the last call, in microseconds: how long a GPU had
  /// no graph to run between two launches that follow one another, oldest first; at most the last 65,536. Empty on the CPU.
  std::vector<float> time_gaps(bool on);

  /// Throws INVALID_OPTION unless the buffer is on the stream's device.
  void require(const Buffer& buffer, const char* what) const;
  /// At least `bytes` of scratch for commands, which run one at a time. Commands hold the buffer they were given.
  std::shared_ptr<Buffer> workspace(size_t bytes);

  /// Cancels what runs, completes what waits with STREAM_FAILED, and leaves the device. Idempotent.
  void close();

  // For the device's engine thread.
  bool ready();
  void run_one();

 private:
  void push(Job job);
  void finished(const Job& job, Outcome outcome);

  const std::shared_ptr<Device> device_;
  const int threads_;
  const std::unique_ptr<Executor> executor_;
  std::shared_ptr<Buffer> workspace_;
  std::optional<std::vector<std::shared_ptr<Command>>> recording_;
  bool closed_ = false;

  std::mutex mutex_;
  std::deque<Job> queue_;
  std::optional<Error> failure_;
  std::vector<CancelFlag> running_;  // the flags of the work under way, so that close() reaches into it
  std::atomic<bool> closing_{false};
};

}  // namespace nibblet
