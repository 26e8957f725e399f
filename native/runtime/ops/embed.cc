#include "kernels/embed/embed.h"

#include "native/runtime/ops.h"
#if NIBBLET_CUDA
#include "kernels/embed/cuda.h"
#include "native/runtime/cuda/execution.h"
#endif

namespace nibblet {
namespace {

class Embed : public OpCommand {
 public:
  explicit Embed(const OpCall& call) : OpCommand(call) {
    const Tensor& table = call.tensor("table");
    const Tensor& slots = call.tensor("slots");
    call.expect_shape("y", {-1, table.shape[1]});
    call.expect_shape("slots", {-1, sizeof(Slot) / 4});
    vocabulary_ = table.shape[0];
    capacity_ = call.tensor("y").shape[0];
    slot_count_ = slots ? slots.shape[0] : INT32_MAX;
    args_.slots = slots.as<Slot>();
    args_.table = table.as<void>();
    args_.table_type = table.dtype;
    args_.hidden = static_cast<int32_t>(table.shape[1]);
    args_.y = call.tensor("y").as<float>();
  }

  void check(const Step* given) const override {
    const Step& step = step_of(given);
    check_tokens(step, capacity_);
    check_slots(step, slot_count_, args_.slots != nullptr);
    for (int32_t t = 0; t < step.tokens; ++t) {
      if (step.ids[t] < -1 || step.ids[t] >= vocabulary_) {
        fail("token id " + std::to_string(step.ids[t]) + " is outside the vocabulary of " +
             std::to_string(vocabulary_));
      }
    }
  }

  void run(const Execution& execution) override {
    const Step& step = *execution.step;
    for (int32_t t = 0; t < step.tokens; ++t) {
      if (step.ids[t] != -1) continue;
      int32_t sampled = args_.slots[step.sequences[step.sequence_of[t]].slot].token;
      if (sampled < 0 || sampled >= vocabulary_) {
        fail("the sampled token " + std::to_string(sampled) + " is outside the vocabulary of " +
             std::to_string(vocabulary_));
      }
    }
    EmbedArgs args = args_;
    args.step = &step;
    run_phases(execution, embed, kEmbedPhases, args, double(step.tokens) * args.hidden);
  }

#if NIBBLET_CUDA
  void enqueue(const CudaExecution& execution) override {
    EmbedArgs args = args_;
    args.step = execution.step;
    check_launch(embed_cuda(args, static_cast<int32_t>(capacity_), execution.target));
  }
#endif

 private:
  EmbedArgs args_{};
  int64_t vocabulary_, capacity_, slot_count_;
};

}  // namespace

std::unique_ptr<Command> bind_embed(const OpCall& call) { return std::make_unique<Embed>(call); }

}  // namespace nibblet
