#include "native/runtime/cuda/executor.h"

#include <algorithm>

#include "native/runtime/cuda/execution.h"

namespace nibblet {
namespace {

/// More would only keep memory of jobs that are done.
constexpr size_t kMostStarted = 32;
/// Page-locked memory above this is given back once it was read.
constexpr size_t kMostKept = size_t{32} << 20;
constexpr size_t kMostGaps = 65536;

struct CompiledGraph {
  std::shared_ptr<CudaDevice> device;
  CudaGraphExec executable;
};

}  // namespace

CudaExecutor::CudaExecutor(std::shared_ptr<CudaDevice> device, int threads)
    : device_((device->activate(), std::move(device))),
      threads_(threads),
      target_(*device_->cuda()),
      step_memory_(device_),
      staging_(device_, stream_.get()) {
  target_.stream = stream_.get();
  eager_target_ = target_;
  eager_target_.programmatic_edges = false;
  completer_ = std::thread([this] { complete(); });
}

CudaExecutor::~CudaExecutor() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  completer_.join();
  // After a fault on the GPU even this fails; there is nothing to be saved then.
  device_->try_activate();
  if (cudaStreamSynchronize(stream_.get()) != cudaSuccess) cudaGetLastError();
}

bool CudaExecutor::full() {
  std::lock_guard lock(mutex_);
  return started_.size() >= kMostStarted;
}

void CudaExecutor::drain() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return started_.empty(); });
}

std::vector<float> CudaExecutor::time_gaps(bool on) {
  timing_.store(on);
  std::lock_guard lock(mutex_);
  std::vector<float> found(gaps_.begin(), gaps_.end());
  gaps_.clear();
  return found;
}

void CudaExecutor::run(Job job, Completion finish) {
  Started started;
  started.job = std::move(job);
  started.finish = std::move(finish);
  try {
    if (failed_) throw *failed_;
    start(started);
  } catch (const Error& error) {
    started.outcome.error = error;
  } catch (const std::exception& error) {
    started.outcome.error = Error("STREAM_FAILED", error.what());
  }
  // Nothing behind it may run, whether or not its end was told yet.
  failed_ = started.outcome.error;
  {
    std::lock_guard lock(mutex_);
    started_.push_back(std::move(started));
  }
  changed_.notify_all();
}

void CudaExecutor::start(Started& started) {
  const Job& job = started.job;
  const bool cancelled = job.cancel->load(std::memory_order_relaxed);
  const StepInput* input = job.input ? job.input.get() : input_.get();
  const Step* step = input ? &input->step() : nullptr;
  const Report report = report_of(job, step);
  if (job.command) job.command->check(step);
  if (job.graph) {
    for (const auto& command : job.graph->commands) command->check(step);
  }
  if (cancelled) {
    started.outcome.cancelled = true;
    return;
  }
  const Execution host{step, threads_, job.cancel.get(), target_.stream};
  // Recording a graph runs its kernels on an empty step, which the new one must not be behind.
  if (job.graph && !job.graph->compiled) compile(*job.graph, host);
  if (job.input) {
    step_memory_.upload(*job.input, stream_.get());
    input_ = job.input;
  }
  if (job.command) job.command->enqueue({eager_target_, step_memory_.step(), &staging_, host, device_});
  if (job.graph) {
    const auto* compiled = static_cast<const CompiledGraph*>(job.graph->compiled.get());
    const bool timed = timing_.load(std::memory_order_relaxed);
    if (timed) started.begun = timestamp();
    check_cuda(cudaGraphLaunch(compiled->executable.get(), stream_.get()), "cudaGraphLaunch");
    if (timed) started.ended = timestamp();
  }
  if (job.cancel->load(std::memory_order_relaxed) && !job.graph) started.outcome.cancelled = true;
  if (report.tensor) {
    started.result = result_memory(report.bytes);
    started.result_bytes = report.bytes;
    check_cuda(cudaMemcpyAsync(started.result.data(), report.tensor.as<uint8_t>(), report.bytes,
                               cudaMemcpyDeviceToHost, stream_.get()),
               "a copy from the GPU");
  }
  started.event = event();
  check_cuda(cudaEventRecord(started.event.get(), stream_.get()), "cudaEventRecord");
}

void CudaExecutor::compile(const Graph& graph, const Execution& host) {
  // What was staged for loading has served by now.
  staging_.release();
  const CudaExecution execution{target_, step_memory_.step(), nullptr, host, device_};
  const auto enqueue_all = [&] {
    for (const auto& command : graph.commands) command->enqueue(execution);
  };
  // Loads every kernel, which a recording must not do, and finds what cannot be launched.
  step_memory_.clear(stream_.get());
  enqueue_all();
  check_cuda(cudaStreamSynchronize(stream_.get()), "an empty step");

  check_cuda(cudaStreamBeginCapture(stream_.get(), cudaStreamCaptureModeThreadLocal),
             "cudaStreamBeginCapture");
  const auto end_capture = [&](cudaGraph_t* to) { return cudaStreamEndCapture(stream_.get(), to); };
  cudaGraph_t handle = nullptr;
  try {
    enqueue_all();
  } catch (...) {
    if (end_capture(&handle) != cudaSuccess) cudaGetLastError();
    const CudaGraph unfinished(handle);
    throw;
  }
  const cudaError_t ended = end_capture(&handle);
  const CudaGraph recorded(handle);
  check_cuda(ended, "cudaStreamEndCapture");
  size_t nodes = 0;
  check_cuda(cudaGraphGetNodes(recorded.get(), nullptr, &nodes), "cudaGraphGetNodes");
  cudaGraphExec_t executable = nullptr;
  check_cuda(cudaGraphInstantiate(&executable, recorded.get(), 0), "cudaGraphInstantiate");
  CudaGraphExec owned(executable);
  graph.compiled = std::make_shared<CompiledGraph>(CompiledGraph{device_, std::move(owned)});
  graph.kernels.store(int(nodes));
}

CudaEvent CudaExecutor::event() {
  {
    std::lock_guard lock(mutex_);
    if (!events_.empty()) {
      CudaEvent event = std::move(events_.back());
      events_.pop_back();
      return event;
    }
  }
  return CudaEvent(cudaEventDisableTiming | cudaEventBlockingSync);
}

CudaEvent CudaExecutor::timestamp() {
  CudaEvent event(cudaEventDefault);
  check_cuda(cudaEventRecord(event.get(), stream_.get()), "cudaEventRecord");
  return event;
}

PinnedMemory CudaExecutor::result_memory(size_t bytes) {
  {
    std::lock_guard lock(mutex_);
    const auto found = std::find_if(results_.begin(), results_.end(),
                                    [&](const auto& memory) { return memory.bytes() >= bytes; });
    if (found != results_.end()) {
      PinnedMemory memory = std::move(*found);
      results_.erase(found);
      return memory;
    }
    // Those that are too small for what is asked of this stream now.
    results_.clear();
  }
  return PinnedMemory(std::max(bytes, size_t{4096}));
}

void CudaExecutor::add_gap(Started& started) {
  float milliseconds = 0;
  if (last_ended_ && started.begun &&
      cudaEventElapsedTime(&milliseconds, last_ended_.get(), started.begun.get()) == cudaSuccess) {
    std::lock_guard lock(mutex_);
    if (gaps_.size() == kMostGaps) gaps_.pop_front();
    gaps_.push_back(1000 * milliseconds);
  }
  last_ended_ = std::move(started.ended);
}

void CudaExecutor::complete() {
  device_->try_activate();
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [&] { return stopping_ || !started_.empty(); });
    if (started_.empty()) return;
    // Only this thread takes from the front, and a deque moves nothing when the engine thread adds to its end.
    Started& first = started_.front();
    lock.unlock();
    if (first.event) {
      const cudaError_t error = cudaEventSynchronize(first.event.get());
      if (error != cudaSuccess && !first.outcome.error)
        first.outcome.error = cuda_error(error, "work on the GPU");
    }
    if (!first.outcome.error) add_gap(first);
    try {
      if (!first.outcome.error && first.result_bytes > 0)
        first.outcome.bytes.assign(first.result.data(), first.result.data() + first.result_bytes);
    } catch (const std::bad_alloc&) {
      first.outcome.error =
          Error("OUT_OF_MEMORY", "the host has no memory for the " + std::to_string(first.result_bytes) +
                                     " bytes that were read from the GPU");
    }
    first.finish(std::move(first.outcome));
    lock.lock();
    Started done = std::move(first);
    started_.pop_front();
    if (done.event) events_.push_back(std::move(done.event));
    if (done.result.data() && done.result.bytes() <= kMostKept) results_.push_back(std::move(done.result));
    lock.unlock();
    // Buffers that only this job held are freed here, outside of the lock.
    done.job = Job();
    done.finish = nullptr;
    changed_.notify_all();
    device_->notify();
    lock.lock();
  }
}

}  // namespace nibblet
