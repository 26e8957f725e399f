#include <cstring>

#include "kernels/linear/matmul.h"
#include "kernels/pack/compact_panels.h"
#include "native/runtime/load.h"
#include "native/runtime/load_source.h"
#if NIBBLET_CUDA
#include "kernels/pack/cuda.h"
#include "native/runtime/cuda/execution.h"
#include "native/runtime/cuda/staging.h"
#endif

namespace nibblet {
namespace {

/// Limits, so that what a thread does beside the product stays little: of all elements that may be exceptions and, where a
/// thread has one row, of the row's. Normally distributed weights have 1 in 9,000, the matrices of trained models that were
/// counted up to 1 in 2,000.
constexpr uint64_t kOneInElements = 512;
constexpr uint32_t kMostInRow = 64;

/// Whether a compact matrix of so many bytes is to take the place of the plain one.
bool pays(const WeightView& plain, uint64_t exceptions, size_t bytes) {
  return exceptions <= uint64_t(plain.out) * uint64_t(plain.in) / kOneInElements &&
         bytes * 6 <= plain.matrix_bytes * 5;
}

class CompactWeight : public Command {
 public:
  explicit CompactWeight(std::shared_ptr<Weight> weight) : weight_(std::move(weight)) {
    weight_->begin_compact();
  }
  ~CompactWeight() override {
    // Whatever became of the stream: the parts that were loaded are still there.
    if (!done_) weight_->end_compact(nullptr, 0, 0);
  }
  const char* name() const override { return "compactWeight"; }

  void run(const Execution& execution) override { convert_once(execution); }
#if NIBBLET_CUDA
  void enqueue(const CudaExecution& execution) override { convert_once(execution); }
#endif

 private:
  template <class Where>
  void convert_once(const Where& execution) {
    // Of a graph that is launched again, say: the weight is compact, or an op may have it.
    if (done_) throw invalid("a weight is made compact once: enqueue that outside of a graph");
    try {
      convert(execution);
    } catch (const Error& error) {
      if (error.code() != "OUT_OF_MEMORY") throw;
      // There is room for one of the two.
      end();
    }
  }

  void convert(const Execution& execution) {
    weight_->require_loaded(execution.stream);
    const WeightView view = weight_->view();
    if (view.in > kCompactMostInputs || !prefers_compact_panels()) return end();
    std::vector<CompactPanel> panels(size_t(round_up(view.out, kPanelRows) / kPanelRows));
    CompactPanelsArgs args = {view.data, view.out, view.in, panels.data(), nullptr};
    const double elements = double(view.out) * double(view.in);
    // Counting an element takes as long as some thirty multiply-adds, putting it into its place as a dozen.
    run_phases(execution, survey_compact_panels, kCompactPanelsPhases, args, 4 * elements);
    if (is_cancelled(execution)) return end();
    const uint64_t exceptions = place_compact_exceptions(panels.data(), int32_t(panels.size()));
    const size_t bytes = compact_panels_matrix_bytes(view.out, view.in, exceptions);
    if (!pays(view, exceptions, bytes)) return end();

    const size_t scales = size_t(view.out) * sizeof(float);
    auto buffer = std::make_shared<Buffer>(weight_->buffer()->device(), bytes + scales);
    args.compact = buffer->data();
    run_phases(execution, compact_panels, kCompactPanelsPhases, args, 2 * elements);
    // Cut short, it is not whole.
    if (is_cancelled(execution)) return end();
    std::memcpy(buffer->data() + bytes, view.row_scales, scales);
    done_ = true;
    weight_->end_compact(std::move(buffer), bytes, exceptions);
  }

#if NIBBLET_CUDA
  /// Where in a staged piece the rows lie, behind the totals.
  static constexpr size_t kRowsAt = 256;
  static_assert(sizeof(CompactTotals) <= kRowsAt);

  void convert(const CudaExecution& execution) {
    if (!execution.staging) throw invalid("a weight cannot be made compact in a graph: enqueue it outside");
    weight_->require_loaded(execution.target.stream);
    const WeightView view = weight_->view();
    const size_t rows_bytes = size_t(round_up(view.out, kFragmentRows)) * sizeof(CompactRow);
    if (view.in > kCompactMostInputs || kRowsAt + rows_bytes > CudaStaging::kPieceBytes) return end();

    CudaStaging& staging = *execution.staging;
    const auto [host, found] = staging.take(kRowsAt + rows_bytes);
    auto* rows = reinterpret_cast<CompactRow*>(found + kRowsAt);
    const CudaTarget& target = execution.target;
    check_cuda(compact_survey_cuda(view.data, view.out, view.in, rows,
                                   reinterpret_cast<CompactTotals*>(found), target),
               "counting exponents");
    check_cuda(cudaMemcpyAsync(host, found, sizeof(CompactTotals), cudaMemcpyDeviceToHost, target.stream),
               "a copy from the GPU");
    check_cuda(cudaStreamSynchronize(target.stream), "counting exponents");
    CompactTotals totals;
    std::memcpy(&totals, host, sizeof totals);
    const size_t bytes = compact_matrix_bytes(view.out, view.in, size_t(totals.listed));
    if (!pays(view, totals.exceptions, bytes) || totals.most_in_row > kMostInRow) return end();
    if (is_cancelled(execution.host)) return end();

    const size_t scales = size_t(view.out) * sizeof(float);
    auto buffer = std::make_shared<Buffer>(weight_->buffer()->device(), bytes + scales);
    check_cuda(compact_cuda(view.data, view.out, view.in, rows, buffer->data(), target),
               "compacting a weight");
    check_cuda(cudaMemcpyAsync(buffer->data() + bytes, view.row_scales, scales, cudaMemcpyDeviceToDevice,
                               target.stream),
               "a copy on the GPU");
    // The plain matrix goes now.
    check_cuda(cudaStreamSynchronize(target.stream), "compacting a weight");
    done_ = true;
    weight_->end_compact(std::move(buffer), bytes, totals.exceptions);
  }
#endif

  void end() {
    done_ = true;
    weight_->end_compact(nullptr, 0, 0);
  }

  std::shared_ptr<Weight> weight_;
  bool done_ = false;
};

}  // namespace

std::unique_ptr<Command> compact_weight(std::shared_ptr<Weight> weight) {
  return std::make_unique<CompactWeight>(std::move(weight));
}

}  // namespace nibblet
