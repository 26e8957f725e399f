#include "kernels/quantize/quantize.h"

#include <cmath>

#include "kernels/weight.h"
#include "native/runtime/ops.h"

namespace nibblet {
namespace {

class Quantize : public OpCommand {
 public:
  explicit Quantize(const OpCall& call) : OpCommand(call) {
    if (call.stream->device()->cuda()) call.fail("runs on the CPU alone; use device 'cpu' for it");
    const Tensor& w = call.tensor("w");
    int64_t rows = w.shape[0], columns = w.shape[1];
    if (columns % kBlockInputs != 0)
      call.fail("NVFP4 needs columns in blocks of 16, got " + std::to_string(columns));
    call.expect_shape("codes", {rows, columns / 2});
    call.expect_shape("blockScales", {rows, columns / kBlockInputs});
    call.expect_shape("global", {1});
    args_.w = w.as<uint8_t>();
    args_.w_type = w.dtype;
    args_.rows = static_cast<int32_t>(rows);
    args_.columns = static_cast<int32_t>(columns);
    args_.codes = call.tensor("codes").as<uint8_t>();
    args_.block_scales = call.tensor("blockScales").as<uint8_t>();
    args_.global = call.tensor("global").as<float>();
    workspace_ = call.stream->workspace(size_t(call.stream->threads()) * sizeof(float));
    args_.partial = reinterpret_cast<float*>(workspace_->data());
  }

  void run(const Execution& execution) override {
    run_phases_unsliced(execution, quantize, kQuantizePhases, args_);
    if (!std::isfinite(*args_.global)) fail("the weight holds NaN or infinity");
  }

 private:
  QuantizeArgs args_{};
  std::shared_ptr<Buffer> workspace_;
};

}  // namespace

std::unique_ptr<Command> bind_quantize(const OpCall& call) { return std::make_unique<Quantize>(call); }

}  // namespace nibblet
