#include "native/runtime/stream.h"

#include <algorithm>

namespace nibblet {
namespace {

Error closed_error() { return Error("STREAM_FAILED", "the stream was closed before this work was done"); }

int checked(int threads) {
  if (threads >= 1 && threads <= 1024) return threads;
  throw invalid("expected 1 to 1024 for `threads`, got " + std::to_string(threads));
}

}  // namespace

Stream::Stream(std::shared_ptr<Device> device, int threads)
    : device_(std::move(device)), threads_(checked(threads)), executor_(device_->executor(threads)) {
  device_->attach(this);
}

Stream::~Stream() { close(); }

void Stream::throw_if_unusable() {
  if (closed_) throw Error("DISPOSED", "the stream is closed; open another");
  std::lock_guard lock(mutex_);
  if (failure_) throw *failure_;
}

void Stream::push(Job job) {
  {
    std::lock_guard lock(mutex_);
    queue_.push_back(std::move(job));
  }
  device_->notify();
}

void Stream::enqueue(std::shared_ptr<Command> command) {
  throw_if_unusable();
  if (recording_) {
    recording_->push_back(std::move(command));
  } else {
    Job job;
    job.command = std::move(command);
    push(std::move(job));
  }
}

void Stream::begin_capture() {
  throw_if_unusable();
  if (recording_) throw invalid("capture is already under way; captures do not nest");
  recording_.emplace();
}

std::shared_ptr<Graph> Stream::end_capture(Tensor result, bool result_rows) {
  if (!recording_) throw invalid("no capture is under way");
  if (result_rows && (!result || result.shape.empty() || result.shape[0] < 1)) {
    throw invalid("a graph that reports rows needs a result that has rows, got " +
                  (result ? describe(result) : "none"));
  }
  if (result) require(*result.buffer, "the result of a capture");
  auto graph = std::make_shared<Graph>();
  graph->commands = std::move(*recording_);
  graph->result = std::move(result);
  graph->result_rows = result_rows;
  graph->stream = weak_from_this();
  recording_.reset();
  return graph;
}

void Stream::step(std::shared_ptr<const StepInput> input) {
  throw_if_unusable();
  if (recording_) throw invalid("a step cannot be set during capture; pass it to launch");
  Job job;
  job.input = std::move(input);
  push(std::move(job));
}

void Stream::launch(std::shared_ptr<const Graph> graph, std::shared_ptr<const StepInput> input,
                    CancelFlag cancel, Completion done) {
  throw_if_unusable();
  if (recording_) throw invalid("a graph cannot be launched during capture");
  if (graph->stream.lock().get() != this)
    throw invalid("a graph can be launched only on the stream that captured it");
  push({std::move(input), nullptr, std::move(graph), {}, std::move(cancel), std::move(done)});
}

void Stream::sync(Completion done) {
  throw_if_unusable();
  push({nullptr, nullptr, nullptr, {}, nullptr, std::move(done)});
}

void Stream::read(Tensor tensor, Completion done) {
  throw_if_unusable();
  require(*tensor.buffer, "the tensor to read");
  push({nullptr, nullptr, nullptr, std::move(tensor), nullptr, std::move(done)});
}

std::vector<float> Stream::time_gaps(bool on) {
  throw_if_unusable();
  return executor_->time_gaps(on);
}

void Stream::require(const Buffer& buffer, const char* what) const {
  if (buffer.device() == device_) return;
  throw invalid(std::string(what) + " is on device '" + buffer.device()->name() + "', the stream on '" +
                device_->name() + "'");
}

std::shared_ptr<Buffer> Stream::workspace(size_t bytes) {
  if (!workspace_ || workspace_->bytes() < bytes) workspace_ = std::make_shared<Buffer>(device_, bytes);
  return workspace_;
}

void Stream::close() {
  if (closed_) return;
  closed_ = true;
  closing_.store(true);
  {
    std::lock_guard lock(mutex_);
    for (const CancelFlag& flag : running_) flag->store(true);
  }
  device_->detach(this);
  executor_->drain();
  recording_.reset();
  for (Job& job : queue_) {
    if (job.done) job.done({failure_ ? *failure_ : closed_error(), false, {}});
  }
  queue_.clear();
  workspace_.reset();
}

bool Stream::ready() {
  std::lock_guard lock(mutex_);
  return !queue_.empty() && !closing_.load() && !executor_->full();
}

void Stream::run_one() {
  Job job;
  std::optional<Error> failure;
  {
    std::lock_guard lock(mutex_);
    job = std::move(queue_.front());
    queue_.pop_front();
    failure = failure_;
    if (!job.cancel) job.cancel = std::make_shared<std::atomic<bool>>(false);
    if (closing_.load()) job.cancel->store(true);
    if (!failure) running_.push_back(job.cancel);
  }
  if (failure) {
    if (job.done) job.done({failure, false, {}});
    return;
  }
  executor_->run(job, [this, job](Outcome outcome) { finished(job, std::move(outcome)); });
}

void Stream::finished(const Job& job, Outcome outcome) {
  {
    std::lock_guard lock(mutex_);
    running_.erase(std::find(running_.begin(), running_.end(), job.cancel));
    // What a GPU was given before the failure was known computed on what failed.
    if (failure_) outcome = {failure_, false, {}};
    if (outcome.error) failure_ = outcome.error;
    if (outcome.cancelled && closing_.load()) outcome.error = closed_error();
  }
  if (job.done) job.done(std::move(outcome));
}

}  // namespace nibblet
