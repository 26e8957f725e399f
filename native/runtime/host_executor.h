#pragma once

#include "native/runtime/job.h"

namespace nibblet {

/// Runs commands on the calling thread and the pool. Looks at the cancel flag between commands and inside them.
class HostExecutor : public Executor {
 public:
  explicit HostExecutor(int threads) : threads_(threads) {}
  void run(Job job, Completion finish) override;

 private:
  Outcome execute(const Job& job);

  const int threads_;
  std::shared_ptr<const StepInput> input_;
};

}  // namespace nibblet
