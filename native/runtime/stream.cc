#include "native/runtime/stream.h"

#include <cstring>

namespace nibblet {
namespace {

Error closed_error() { return Error("STREAM_FAILED", "the stream was closed before this work was done"); }

}  // namespace

Stream::Stream(std::shared_ptr<Device> device, int threads) : device_(std::move(device)), threads_(threads) {
  if (threads < 1 || threads > 1024)
    throw invalid("expected 1 to 1024 for `threads`, got " + std::to_string(threads));
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
  auto graph = std::make_shared<Graph>(
      Graph{std::move(*recording_), std::move(result), result_rows, weak_from_this()});
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
  push({nullptr, std::move(graph), std::move(input), {}, std::move(cancel), std::move(done)});
}

void Stream::sync(Completion done) {
  throw_if_unusable();
  push({nullptr, nullptr, nullptr, {}, nullptr, std::move(done)});
}

void Stream::read(Tensor tensor, Completion done) {
  throw_if_unusable();
  push({nullptr, nullptr, nullptr, std::move(tensor), nullptr, std::move(done)});
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
    if (running_) running_->store(true);
  }
  device_->detach(this);
  recording_.reset();
  for (Job& job : queue_) {
    if (job.done) job.done({failure_ ? *failure_ : closed_error(), false, {}});
  }
  queue_.clear();
  input_.reset();
  workspace_.reset();
}

bool Stream::ready() {
  std::lock_guard lock(mutex_);
  return !queue_.empty() && !closing_.load();
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
    running_ = job.cancel;
  }
  Outcome outcome;
  if (failure) {
    outcome.error = failure;
  } else {
    outcome = execute(job);
    std::lock_guard lock(mutex_);
    running_.reset();
    if (outcome.error) failure_ = outcome.error;
    if (outcome.cancelled && closing_.load()) outcome.error = closed_error();
  }
  if (job.done) job.done(std::move(outcome));
}

Outcome Stream::execute(Job& job) {
  Outcome outcome;
  auto stopped = [&] { return job.cancel->load(std::memory_order_relaxed); };
  try {
    if (job.input) input_ = job.input;
    Execution execution{input_ ? &input_->step() : nullptr, threads_, job.cancel.get()};
    if (job.command) job.command->run(execution);
    if (job.graph) {
      for (const auto& command : job.graph->commands) {
        if (stopped()) break;
        command->run(execution);
      }
      if (job.graph->result) job.tensor = job.graph->result;
    }
    if (stopped()) {
      outcome.cancelled = true;
    } else if (job.tensor) {
      size_t bytes = job.tensor.bytes();
      if (job.graph && job.graph->result_rows && execution.step) {
        int64_t rows = execution.step->row_count, most = job.tensor.shape[0];
        if (rows > most) {
          throw Error("OP_FAILED", "the step wants " + std::to_string(rows) + " rows of a result of " +
                                       std::to_string(most));
        }
        bytes = bytes / size_t(most) * size_t(rows);
      }
      const uint8_t* data = job.tensor.as<uint8_t>();
      outcome.bytes.assign(data, data + bytes);
    }
  } catch (const Error& error) {
    outcome.error = error;
  } catch (const std::exception& error) {
    outcome.error = Error("STREAM_FAILED", error.what());
  }
  return outcome;
}

}  // namespace nibblet
