#include "kernels/attention/attention.h"

#include <algorithm>
#include <climits>
#include <cmath>

#include "kernels/attention/split.h"
#include "native/runtime/ops.h"
#if NIBBLET_CUDA
#include "kernels/attention/cuda.h"
#include "native/runtime/cuda/execution.h"
#endif

namespace nibblet {
namespace {

/// 32 MiB: a quarter of a million positions of Nano's heads.
constexpr size_t kMostScratchFloats = size_t{8} << 20;

class Attention : public OpCommand {
 public:
  explicit Attention(const OpCall& call) : OpCommand(call) {
    const Tensor& qkv = call.tensor("qkv");
    const Tensor& cache = call.tensor("cache");
    int64_t heads = call.integer("heads"), kv_heads = cache.shape[2], head_dim = cache.shape[4];
    if (heads < 1 || kv_heads < 1 || heads % kv_heads != 0) {
      call.fail("`heads` must be a multiple of the " + std::to_string(kv_heads) + " kv heads, got " +
                std::to_string(heads));
    }
    call.expect_shape("cache", {-1, 2, -1, kPageTokens, -1});
    call.expect_shape("qkv", {-1, (heads + 2 * kv_heads) * head_dim});
    call.expect_shape("y", {qkv.shape[0], heads * head_dim});
    call.expect_shape("slots", {-1, sizeof(Slot) / 4});
    if (call.tensor("y").dtype != qkv.dtype) call.fail("`qkv` and `y` must have one dtype");
    args_.k_scale = static_cast<float>(call.number("kScale"));
    args_.v_scale = static_cast<float>(call.number("vScale"));
    if (!(args_.k_scale > 0) || !(args_.v_scale > 0)) call.fail("cache scales must be positive");
    slot_count_ = call.tensor("slots") ? call.tensor("slots").shape[0] : INT32_MAX;
    capacity_ = qkv.shape[0];
    pages_ = cache.shape[0];
    exact_ = call.flag("exact");
    args_.slots = call.tensor("slots").as<Slot>();
    args_.heads = static_cast<int32_t>(heads);
    args_.kv_heads = static_cast<int32_t>(kv_heads);
    args_.head_dim = static_cast<int32_t>(head_dim);
    args_.scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
    args_.type = qkv.dtype;
    args_.qkv = qkv.as<void>();
    args_.cache_type = cache.dtype;
    args_.cache = cache.as<void>();
    args_.y = call.tensor("y").as<void>();
#if NIBBLET_CUDA
    if (const CudaTarget* target = call.stream->device()->cuda()) {
      if (exact_) call.fail("`exact` runs on the CPU alone; use device 'cpu' for it");
      cuda_ = CudaScratchBuffers(*call.stream,
                                 attention_cuda_scratch(args_, static_cast<int32_t>(capacity_), *target));
      return;
    }
#endif
    if (exact_) return;
    // Steps that want more (long contexts, or several tokens of many sequences) are not split.
    const size_t wanted = size_t(heads) * size_t(pages_) * attention_row_floats(1);
    args_.scratch_floats = std::min(wanted, kMostScratchFloats);
    scratch_ = call.stream->workspace(args_.scratch_floats * sizeof(float));
    args_.scratch = reinterpret_cast<float*>(scratch_->data());
  }

  void check(const Step* given) const override {
    const Step& step = step_of(given);
    check_tokens(step, capacity_);
    check_slots(step, slot_count_, args_.slots != nullptr);
    for (int32_t s = 0; s < step.sequence_count; ++s) {
      const Sequence& sequence = step.sequences[s];
      int32_t used = (sequence.position + sequence.count + kPageTokens - 1) / kPageTokens;
      for (int32_t i = 0; i < used; ++i) {
        int32_t page = step.pages[int64_t(s) * step.pages_per_sequence + i];
        if (page < 0 || page >= pages_) fail("page " + std::to_string(page) + " does not exist");
      }
    }
  }

  void run(const Execution& execution) override {
    AttentionArgs args = args_;
    const Step& step = *execution.step;
    args.step = &step;
    double work = 0;
    for (int32_t s = 0; s < step.sequence_count; ++s) {
      const Sequence& sequence = step.sequences[s];
      work += 2.0 * sequence.count * (sequence.position + sequence.count) * args.heads * args.head_dim;
    }
    // Appending a few tokens is done sooner than the pool is awake.
    const bool few = double(step.tokens) * args.kv_heads * args.head_dim < kWakeWork;
    const bool split = !exact_ && attention_is_split(args);
    const auto most = [&](int phase) { return (phase == 0 && few) || (phase > 1 && !split) ? 1 : INT_MAX; };
    run_phases(execution, exact_ ? attention_reference : attention, kAttentionPhases, args, work, most);
  }

#if NIBBLET_CUDA
  void enqueue(const CudaExecution& execution) override {
    AttentionArgs args = args_;
    args.step = execution.step;
    check_launch(attention_cuda(args, static_cast<int32_t>(capacity_), cuda_.workspace(), cuda_.counters(),
                                execution.target));
  }
#endif

 private:
  AttentionArgs args_{};
  bool exact_;
  int64_t slot_count_, capacity_, pages_;
  std::shared_ptr<Buffer> scratch_;
#if NIBBLET_CUDA
  CudaScratchBuffers cuda_;
#endif
};

}  // namespace

std::unique_ptr<Command> bind_attention(const OpCall& call) { return std::make_unique<Attention>(call); }

}  // namespace nibblet
