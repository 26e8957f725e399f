#include "kernels/sample/sample.h"

#include <algorithm>

#include "native/runtime/ops.h"
#if NIBBLET_CUDA
#include "kernels/sample/cuda.h"
#include "native/runtime/cuda/execution.h"
#endif

namespace nibblet {
namespace {

class Sample : public OpCommand {
 public:
  explicit Sample(const OpCall& call) : OpCommand(call) {
    const Tensor& logits = call.tensor("logits");
    int64_t slots = call.tensor("slots").shape[0], vocabulary = logits.shape[1];
    call.expect_shape("slots", {-1, sizeof(Slot) / 4});
    call.expect_shape("seen", {slots, vocabulary});
    call.expect_shape("counts", {slots, vocabulary});
    call.expect_shape("results", {logits.shape[0], sizeof(Result)});
    if (call.tensor("results").offset % alignof(Result) != 0)
      call.fail("`results` is not aligned to 4 bytes");
    slot_count_ = slots;
    capacity_ = logits.shape[0];
    args_.slots = call.tensor("slots").as<Slot>();
    args_.vocabulary = static_cast<int32_t>(vocabulary);
    args_.logits = logits.as<float>();
    args_.seen = call.tensor("seen").as<uint8_t>();
    args_.counts = call.tensor("counts").as<uint32_t>();
    args_.results = call.tensor("results").as<Result>();
#if NIBBLET_CUDA
    if (const CudaTarget* target = call.stream->device()->cuda()) {
      cuda_ = CudaScratchBuffers(*call.stream,
                                 sample_cuda_scratch(args_, static_cast<int32_t>(capacity_), *target));
      return;
    }
#endif
    workspace_ =
        call.stream->workspace(size_t(call.stream->threads()) * size_t(vocabulary) * sizeof(int32_t));
    args_.scratch = reinterpret_cast<int32_t*>(workspace_->data());
  }

  void check(const Step* given) const override {
    const Step& step = step_of(given);
    check_slots(step, slot_count_, true);
    if (step.row_count > capacity_) fail("the step samples more rows than the graph was captured for");
    if (step.row_count > 0 && !step.sampling) fail("the step has rows but no sampling parameters");
    check_ids(step);
  }

  void run(const Execution& execution) override {
    SampleArgs args = args_;
    const Step& step = *execution.step;
    args.step = &step;
    if (step.row_count == 0 && step.sequence_count == 0) return;
    for (int32_t r = 0; r < step.row_count; ++r) {
      if (args.slots[step.sequences[step.rows[r].sequence].slot].forced < 0)
        fail("a slot holds a negative count");
    }
    // What only decodes has no prompt to mark: that is sooner seen than shared out.
    const auto decodes = [](const Sequence& sequence) { return (sequence.flags & kDecode) != 0; };
    const bool marks = !std::all_of(step.sequences, step.sequences + step.sequence_count, decodes);
    const auto most = [&](int phase) {
      return std::max(1, phase == 1 ? step.row_count : marks ? step.sequence_count : 1);
    };
    run_phases_unsliced(execution, sample, kSamplePhases, args, most);
  }

#if NIBBLET_CUDA
  void enqueue(const CudaExecution& execution) override {
    SampleArgs args = args_;
    args.step = execution.step;
    check_launch(sample_cuda(args, static_cast<int32_t>(capacity_), cuda_.workspace(), cuda_.counters(),
                             execution.target));
  }
#endif

 private:
  /// Every id that indexes the vocabulary: prompt tokens whose counts are kept, and forced tokens.
  void check_ids(const Step& step) const {
    auto check = [&](int32_t id, const char* what) {
      if (id < 0 || id >= args_.vocabulary) {
        fail(std::string(what) + " " + std::to_string(id) + " is outside the vocabulary of " +
             std::to_string(args_.vocabulary));
      }
    };
    for (int32_t s = 0; s < step.sequence_count; ++s) {
      const Sequence& sequence = step.sequences[s];
      if ((sequence.flags & kCount) == 0 || (sequence.flags & kDecode) != 0) continue;
      for (int32_t t = 0; t < sequence.count; ++t) check(step.ids[sequence.first + t], "token id");
    }
    for (int32_t r = 0; r < step.row_count; ++r) {
      const Sampling& sampling = step.sampling[r];
      for (int32_t i = 0; i < sampling.forced_count; ++i)
        check(step.lists[sampling.forced_first + i], "forced id");
    }
  }

  SampleArgs args_{};
  int64_t slot_count_, capacity_;
  std::shared_ptr<Buffer> workspace_;
#if NIBBLET_CUDA
  CudaScratchBuffers cuda_;
#endif
};

}  // namespace

std::unique_ptr<Command> bind_sample(const OpCall& call) { return std::make_unique<Sample>(call); }

}  // namespace nibblet
