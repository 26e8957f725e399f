#include "kernels/moe/moe.h"

#include <algorithm>
#include <climits>

#include "native/runtime/ops.h"
#if NIBBLET_CUDA
#include "kernels/moe/cuda.h"
#include "native/runtime/cuda/execution.h"
#endif

namespace nibblet {
namespace {

class Moe : public OpCommand {
 public:
  explicit Moe(const OpCall& call) : OpCommand(call) {
    const Tensor& x = call.tensor("x");
    const Tensor& router = call.tensor("router");
    int64_t experts = router.shape[0], hidden = router.shape[1];
    call.expect_shape("x", {-1, hidden});
    call.expect_shape("norm", {hidden});
    call.expect_shape("bias", {experts});
    args_.up = matrices(call, "up", experts, -1, hidden);
    args_.down = matrices(call, "down", experts, hidden, args_.up.out);
    call.expect_shape("upBias", {experts, args_.up.out});
    call.expect_shape("downBias", {experts, hidden});
    if ((call.weight("sharedUp") == nullptr) != (call.weight("sharedDown") == nullptr)) {
      call.fail("`sharedUp` and `sharedDown` go together");
    }
    if (call.weight("sharedUp")) {
      args_.shared_up = matrices(call, "sharedUp", 1, -1, hidden);
      args_.shared_down = matrices(call, "sharedDown", 1, hidden, args_.shared_up.out);
      call.expect_shape("sharedUpBias", {args_.shared_up.out});
      call.expect_shape("sharedDownBias", {hidden});
    }
    args_.exact = call.flag("exact");
    args_.top_k = call.integer("topK");
    args_.groups = call.integer("groups");
    args_.topk_groups = call.integer("topkGroups");
    if (args_.groups < 1 || experts % args_.groups != 0 || args_.topk_groups < 1 ||
        args_.topk_groups > args_.groups) {
      call.fail("`groups` must divide the experts and `topkGroups` lie between 1 and `groups`");
    }
    if (args_.top_k < 1 || args_.top_k > experts / args_.groups * args_.topk_groups || args_.top_k > 64) {
      call.fail("`topK` must lie between 1 and the experts that groups leave, at most 64");
    }
    capacity_ = x.shape[0];
    args_.hidden = static_cast<int32_t>(hidden);
    args_.x = x.as<float>();
    args_.norm = call.tensor("norm").as<float>();
    args_.epsilon = static_cast<float>(call.number("epsilon"));
    args_.router = router.as<float>();
    args_.bias = call.tensor("bias").as<float>();
    args_.experts = static_cast<int32_t>(experts);
    args_.normalize = call.flag("normalize");
    args_.scale = static_cast<float>(call.number("scale"));
    args_.up_bias = call.tensor("upBias").as<float>();
    args_.down_bias = call.tensor("downBias").as<float>();
    args_.shared_up_bias = call.tensor("sharedUpBias").as<float>();
    args_.shared_down_bias = call.tensor("sharedDownBias").as<float>();
    call.expect_shape("statistics", {2 * (kMoeExperts + experts)});
    statistics_ = call.tensor("statistics");
    if (statistics_.offset % sizeof(uint64_t) != 0)
      call.fail("`statistics` holds 64-bit counters and is not aligned to 8");
#if NIBBLET_CUDA
    if (const CudaTarget* target = call.stream->device()->cuda()) {
      if (args_.exact) call.fail("`exact` runs on the CPU alone; use device 'cpu' for it");
      args_.tokens = static_cast<int32_t>(capacity_);
      cuda_ = CudaScratchBuffers(*call.stream, moe_cuda_scratch(args_, *target));
      return;
    }
#endif
    workspace_ = call.stream->workspace(moe_scratch_bytes(args_, capacity_));
    args_.scratch = workspace_->data();
  }

  void check(const Step* step) const override { check_tokens(step_of(step), capacity_); }

  void run(const Execution& execution) override {
    const Step& step = *execution.step;
    MoeArgs args = args_;
    args.tokens = step.tokens;
    double routed = double(args.top_k) * args.up.out, shared = args.shared_up.data ? args.shared_up.out : 0;
    // The norm is cut by tokens; a small router, and the choice and the sum for one token, are done sooner than the pool is awake.
    const bool small_router = double(args.tokens) * args.experts * args.hidden < kWakeWork;
    const auto most = [&](int phase) {
      const bool alone = (phase == 1 && small_router) || ((phase == 2 || phase == 5) && args.tokens == 1);
      return alone ? 1 : phase == 0 ? args.tokens : INT_MAX;
    };
    run_phases(execution, moe, kMoePhases, args, double(args.tokens) * args.hidden * (routed + shared), most);
    const bool cancelled = execution.cancelled && execution.cancelled->load();
    if (statistics_ && !cancelled) moe_statistics(args, statistics_.as<uint64_t>());
  }

#if NIBBLET_CUDA
  void enqueue(const CudaExecution& execution) override {
    check_launch(moe_cuda(args_, execution.step, statistics_.as<uint64_t>(), cuda_.workspace(),
                          cuda_.counters(), execution.target));
  }
#endif

 private:
  WeightView matrices(const OpCall& call, const char* name, int64_t count, int64_t out, int64_t in) const {
    WeightView view = call.weight(name)->bind();
    if (view.matrices != count || (out != -1 && view.out != out) || view.in != in) {
      call.fail("expected " + std::to_string(count) + " matrices of [" +
                (out == -1 ? "any" : std::to_string(out)) + ", " + std::to_string(in) + "] for `" + name +
                "`, got " + std::to_string(view.matrices) + " of [" + std::to_string(view.out) + ", " +
                std::to_string(view.in) + "]");
    }
    if (view.format == Format::compact_bf16)
      call.fail(std::string("`") + name +
                "` was made compact, and `moe` reads plain weights: load it again without");
    if (call.flag("exact") && view.layout != Layout::rows)
      call.fail(std::string("`exact` needs `") + name + "` in rows layout");
    return view;
  }

  MoeArgs args_{};
  int64_t capacity_;
  Tensor statistics_;
  std::shared_ptr<Buffer> workspace_;
#if NIBBLET_CUDA
  CudaScratchBuffers cuda_;
#endif
};

}  // namespace

std::unique_ptr<Command> bind_moe(const OpCall& call) { return std::make_unique<Moe>(call); }

}  // namespace nibblet
