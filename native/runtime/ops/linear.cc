#include "kernels/linear/linear.h"

#include <climits>

#include "native/runtime/ops.h"
#if NIBBLET_CUDA
#include "kernels/linear/cuda.h"
#include "native/runtime/cuda/execution.h"
#endif

namespace nibblet {
namespace {

class Linear : public OpCommand {
 public:
  explicit Linear(const OpCall& call) : OpCommand(call) {
    const Tensor& x = call.tensor("x");
    const Tensor& y = call.tensor("y");
    args_.weight = call.weight("weight")->bind();
    if (args_.weight.matrices != 1) call.fail("`weight` must be a single matrix");
    int64_t in = args_.weight.in, out = args_.weight.out;
    call.expect_shape("x", {-1, in});
    call.expect_shape("norm", {in});
    call.expect_shape("bias", {out});
    call.expect_shape("y", {-1, out});
    select_rows_ = call.flag("rows");
    capacity_ = select_rows_ ? y.shape[0] : x.shape[0];
    x_capacity_ = x.shape[0];
    if (y.shape[0] < capacity_) call.fail("`y` has fewer rows than `x`");
    args_.exact = call.flag("exact");
    args_.add = call.flag("add");
    args_.quantize_input = call.flag("quantizeInput");
    if (args_.add && y.dtype != DType::f32) call.fail("`add` needs `y` in f32, got " + describe(y));
    if (args_.quantize_input && !(args_.weight.input_scale > 0)) {
      call.fail("`quantizeInput` needs a weight with an input scale; this checkpoint has none");
    }
    if (args_.exact && args_.weight.layout != Layout::rows)
      call.fail("`exact` needs a weight in rows layout");
    args_.x = x.as<void>();
    args_.x_type = x.dtype;
    args_.x_stride = in;
    args_.norm = call.tensor("norm").as<float>();
    args_.bias = call.tensor("bias").as<float>();
    args_.epsilon = static_cast<float>(call.number("epsilon"));
    args_.activation = call.flag("relu2") ? Activation::relu2 : Activation::none;
    args_.y = y.as<void>();
    args_.y_type = y.dtype;
    args_.y_stride = out;
#if NIBBLET_CUDA
    if (const CudaTarget* target = call.stream->device()->cuda()) {
      if (args_.exact || args_.quantize_input)
        call.fail("`exact` and `quantizeInput` run on the CPU alone; use device 'cpu' for them");
      args_.count = static_cast<int32_t>(capacity_);
      // Which ones is in the step, on the device.
      static const LogitsRow some{};
      if (select_rows_) args_.rows = &some;
      cuda_ = CudaScratchBuffers(*call.stream, linear_cuda_scratch(args_, *target));
      return;
    }
#endif
    workspace_ = call.stream->workspace(linear_scratch_bytes(capacity_, args_.weight.in));
    args_.prepared = reinterpret_cast<float*>(workspace_->data());
  }

  void check(const Step* given) const override {
    const Step& step = step_of(given);
    check_tokens(step, x_capacity_);
    const int32_t rows = rows_of(step);
    if (rows > capacity_) {
      fail("the step wants " + std::to_string(rows) + " rows, the graph was captured for " +
           std::to_string(capacity_));
    }
  }

  void run(const Execution& execution) override {
    const Step& step = *execution.step;
    LinearArgs args = args_;
    args.count = rows_of(step);
    if (select_rows_) args.rows = step.rows;
    if (args.count == 0) return;
    // The prologue is cut by rows.
    const auto most = [&](int phase) { return phase == 0 ? args.count : INT_MAX; };
    run_phases(execution, linear, kLinearPhases, args, double(args.count) * args.weight.in * args.weight.out,
               most);
  }

#if NIBBLET_CUDA
  void enqueue(const CudaExecution& execution) override {
    check_launch(linear_cuda(args_, execution.step, cuda_.workspace(), cuda_.counters(), execution.target));
  }
#endif

 private:
  int32_t rows_of(const Step& step) const { return select_rows_ ? step.row_count : step.tokens; }

  LinearArgs args_{};
  bool select_rows_;
  int64_t capacity_, x_capacity_;
  std::shared_ptr<Buffer> workspace_;
#if NIBBLET_CUDA
  CudaScratchBuffers cuda_;
#endif
};

}  // namespace

std::unique_ptr<Command> bind_linear(const OpCall& call) { return std::make_unique<Linear>(call); }

}  // namespace nibblet
