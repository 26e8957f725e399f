#include "kernels/mamba/mamba.h"

#include "native/runtime/ops.h"
#if NIBBLET_CUDA
#include "kernels/mamba/cuda.h"
#include "native/runtime/cuda/execution.h"
#endif

namespace nibblet {
namespace {

class Mamba : public OpCommand {
 public:
  explicit Mamba(const OpCall& call) : OpCommand(call) {
    const Tensor& projected = call.tensor("projected");
    const Tensor& state = call.tensor("ssmState");
    int64_t slots = state.shape[0], heads = state.shape[1], head_dim = state.shape[2], size = state.shape[3];
    int64_t groups = call.integer("groups"), inner = heads * head_dim;
    if (groups < 1 || heads % groups != 0)
      call.fail("`groups` must divide the " + std::to_string(heads) + " heads");
    int64_t channels = inner + 2 * groups * size;
    int64_t kernel = call.tensor("convWeight").shape[1];
    if (kernel < 2 || kernel > 8)
      call.fail("expected a convolution kernel of 2 to 8, got " + std::to_string(kernel));
    call.expect_shape("projected", {-1, 2 * inner + 2 * groups * size + heads});
    call.expect_shape("convWeight", {channels, -1});
    call.expect_shape("convBias", {channels});
    call.expect_shape("dtBias", {heads});
    call.expect_shape("aLog", {heads});
    call.expect_shape("d", {heads});
    call.expect_shape("norm", {inner});
    call.expect_shape("convState", {slots, channels, kernel - 1});
    call.expect_shape("y", {projected.shape[0], inner});
    call.expect_shape("slots", {-1, sizeof(Slot) / 4});
    if (call.tensor("y").dtype != projected.dtype || call.tensor("convState").dtype != projected.dtype) {
      call.fail("`projected`, `convState` and `y` must have one dtype");
    }
    slot_count_ = slots;
    if (call.tensor("slots")) slot_count_ = std::min(slot_count_, call.tensor("slots").shape[0]);
    capacity_ = projected.shape[0];
    exact_ = call.flag("exact");
    args_.slots = call.tensor("slots").as<Slot>();
    args_.heads = static_cast<int32_t>(heads);
    args_.head_dim = static_cast<int32_t>(head_dim);
    args_.groups = static_cast<int32_t>(groups);
    args_.state = static_cast<int32_t>(size);
    args_.kernel = static_cast<int32_t>(kernel);
    args_.epsilon = static_cast<float>(call.number("epsilon"));
    args_.type = projected.dtype;
    args_.projected = projected.as<void>();
    args_.conv_weight = call.tensor("convWeight").as<float>();
    args_.conv_bias = call.tensor("convBias").as<float>();
    args_.dt_bias = call.tensor("dtBias").as<float>();
    args_.a_log = call.tensor("aLog").as<float>();
    args_.d = call.tensor("d").as<float>();
    args_.norm = call.tensor("norm").as<float>();
    args_.conv_state = call.tensor("convState").as<void>();
    args_.ssm_state = state.as<float>();
    args_.y = call.tensor("y").as<void>();
#if NIBBLET_CUDA
    if (const CudaTarget* target = call.stream->device()->cuda()) {
      if (exact_) call.fail("`exact` runs on the CPU alone; use device 'cpu' for it");
      cuda_ = CudaScratchBuffers(*call.stream,
                                 mamba_cuda_scratch(args_, static_cast<int32_t>(capacity_), *target));
      return;
    }
#endif
    size_t convolved = size_t(capacity_) * size_t(channels);
    workspace_ = call.stream->workspace((convolved + size_t(capacity_) * size_t(inner)) * sizeof(float));
    args_.convolved = reinterpret_cast<float*>(workspace_->data());
    args_.scanned = args_.convolved + convolved;
  }

  void check(const Step* step) const override {
    check_tokens(step_of(step), capacity_);
    check_slots(*step, slot_count_, args_.slots != nullptr);
  }

  void run(const Execution& execution) override {
    MambaArgs args = args_;
    args.step = execution.step;
    double work = 2.0 * args.step->tokens * args.heads * args.head_dim * args.state;
    const int64_t groups = int64_t(args.step->sequence_count) * args.groups;
    const bool decodes = args.step->tokens == args.step->sequence_count;
    // Where they cannot be shared out evenly a barrier costs less than waiting for who has one more.
    const bool even = groups % execution.threads == 0 || groups >= 8 * execution.threads;
    if (!exact_ && decodes && even && mamba_groups_stand_alone(args)) {
      return run_phases(execution, mamba_by_groups, 1, args, work);
    }
    run_phases(execution, exact_ ? mamba_reference : mamba, kMambaPhases, args, work);
  }

#if NIBBLET_CUDA
  void enqueue(const CudaExecution& execution) override {
    MambaArgs args = args_;
    args.step = execution.step;
    check_launch(mamba_cuda(args, static_cast<int32_t>(capacity_), cuda_.workspace(), cuda_.counters(),
                            execution.target));
  }
#endif

 private:
  MambaArgs args_{};
  bool exact_;
  int64_t slot_count_, capacity_;
  std::shared_ptr<Buffer> workspace_;
#if NIBBLET_CUDA
  CudaScratchBuffers cuda_;
#endif
};

}  // namespace

std::unique_ptr<Command> bind_mamba(const OpCall& call) { return std::make_unique<Mamba>(call); }

}  // namespace nibblet
