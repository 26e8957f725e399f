#include "native/runtime/host_executor.h"

namespace nibblet {

void HostExecutor::run(Job job, Completion finish) {
  Outcome outcome;
  try {
    outcome = execute(job);
  } catch (const Error& error) {
    outcome.error = error;
  } catch (const std::exception& error) {
    outcome.error = Error("STREAM_FAILED", error.what());
  }
  finish(std::move(outcome));
}

Outcome HostExecutor::execute(const Job& job) {
  Outcome outcome;
  const auto stopped = [&] { return job.cancel->load(std::memory_order_relaxed); };
  if (job.input) input_ = job.input;
  const Step* step = input_ ? &input_->step() : nullptr;
  const Execution execution{step, threads_, job.cancel.get(), this};
  const Report report = report_of(job, step);
  if (job.command) {
    job.command->check(step);
    job.command->run(execution);
  }
  if (job.graph) {
    // All of them first: a step that cannot be leaves caches and states as they were.
    for (const auto& command : job.graph->commands) command->check(step);
    for (const auto& command : job.graph->commands) {
      if (stopped()) break;
      command->run(execution);
    }
  }
  if (stopped()) {
    outcome.cancelled = true;
  } else if (report.tensor) {
    const uint8_t* data = report.tensor.as<uint8_t>();
    outcome.bytes.assign(data, data + report.bytes);
  }
  return outcome;
}

Report report_of(const Job& job, const Step* step) {
  Report report{job.graph && job.graph->result ? job.graph->result : job.tensor};
  if (!report.tensor) return report;
  report.bytes = report.tensor.bytes();
  if (job.graph && job.graph->result_rows && step) {
    const int64_t rows = step->row_count, most = report.tensor.shape[0];
    if (rows > most) {
      throw Error("OP_FAILED",
                  "the step wants " + std::to_string(rows) + " rows of a result of " + std::to_string(most));
    }
    report.bytes = report.bytes / size_t(most) * size_t(rows);
  }
  return report;
}

}  // namespace nibblet
