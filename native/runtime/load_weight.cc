#include <algorithm>

#include "native/runtime/load_part.h"
#if NIBBLET_CUDA
#include "native/runtime/cuda/execution.h"
#include "native/runtime/cuda/upload_weight.h"
#endif

namespace nibblet {
namespace {

/// Packed between two looks at the cancel flag; what a source that has no memory of its own makes at a time.
constexpr size_t kPieceBytes = size_t{4} << 20;

/// Parts that their weight is to wait for.
class PendingPart {
 public:
  explicit PendingPart(std::shared_ptr<Weight> weight) : weight_(std::move(weight)) { weight_->begin_part(); }
  ~PendingPart() { weight_->end_part(stream_); }
  PendingPart(const PendingPart&) = delete;
  PendingPart& operator=(const PendingPart&) = delete;
  void start(const void* stream) {
    weight_->start_part(stream_, stream);
    stream_ = stream;
  }

 private:
  const std::shared_ptr<Weight> weight_;
  const void* stream_ = nullptr;
};

class LoadWeight : public Command {
 public:
  LoadWeight(std::shared_ptr<Weight> weight, std::vector<WeightPart> parts)
      : weight_(std::move(weight)), pending_(weight_) {
    parts_.reserve(parts.size());
    for (WeightPart& part : parts) parts_.emplace_back(*weight_, std::move(part));
    for (const LoadPart& part : parts_) weight_->raise_input_scale(part.part().input_scale);
  }
  const char* name() const override { return "loadWeight"; }

  void run(const Execution& execution) override {
    pending_.start(execution.stream);
    for (const LoadPart& part : parts_) load(execution, part);
  }

#if NIBBLET_CUDA
  void enqueue(const CudaExecution& execution) override {
    if (!execution.staging) throw invalid("a load cannot be captured: enqueue it outside of the graph");
    pending_.start(execution.target.stream);
    upload_weight(execution, *weight_, parts_);
  }
#endif

 private:
  void load(const Execution& execution, const LoadPart& part) const {
    const WeightPart& given = part.part();
    // Reading what is gone from a mapping would end the process.
    for (const FileTensor* tensor : {&given.elements, &given.block_scales, &given.row_scales}) {
      if (*tensor) tensor->file->check_size();
    }
    copy_row_scales(execution, part);
    // Panels are made whole.
    const size_t step =
        std::max(kPieceBytes / part.file_bytes(1) / kPanelRows * kPanelRows, size_t(kPanelRows));
    for (size_t first = 0; first < part.rows() && !is_cancelled(execution); first += step)
      pack_rows(execution, part, first, std::min(step, part.rows() - first));
  }

  void copy_row_scales(const Execution& execution, const LoadPart& part) const {
    const FileTensor& from = part.part().row_scales;
    float* scales = part.row_scales(*weight_, 0);
    if (!from) return std::fill_n(scales, part.rows(), part.part().scale), void();
    const uint8_t* data = from.file->range(execution, from.offset, part.rows() * dtype_bytes(from.dtype),
                                           load_scratch.row_scales);
    if (is_cancelled(execution)) return;
    for (size_t row = 0; row < part.rows(); ++row) {
      scales[row] = widen(data, from.dtype, row);
      if (!is_scale(scales[row])) throw bad_scale(from, scales[row]);
    }
  }

  void pack_rows(const Execution& execution, const LoadPart& part, size_t first, size_t count) const {
    const FileTensor &codes = part.part().elements, &blocks = part.part().block_scales;
    const size_t at = codes.offset + part.file_bytes(first), bytes = part.file_bytes(count);
    const size_t blocks_at = blocks.offset + part.block_bytes(first), block_bytes = part.block_bytes(count);
    const uint8_t* elements = codes.file->range(execution, at, bytes, load_scratch.elements);
    const uint8_t* scales = nullptr;
    if (blocks) scales = blocks.file->range(execution, blocks_at, block_bytes, load_scratch.block_scales);
    if (is_cancelled(execution)) return;
    std::vector<float> wide;
    if (part.widened()) {
      wide.resize(count * part.inputs());
      for (size_t i = 0; i < wide.size(); ++i) wide[i] = widen(elements, codes.dtype, i);
      elements = reinterpret_cast<const uint8_t*>(wide.data());
    }
    PackArgs args = part.pack_args(*weight_, first, count, elements, scales);
    std::atomic<int64_t> bad{0};
    args.bad = &bad;
    run_phases(execution, pack, kPackPhases, args, double(count) * double(part.inputs()));
    if (bad != 0) {
      const size_t index = size_t(bad - 1);
      if (blocks) throw bad_element(blocks, part.block_bytes(first) + index);
      throw bad_element(codes, first * part.inputs() + index);
    }
    codes.file->release(at, bytes);
    if (blocks) blocks.file->release(blocks_at, block_bytes);
  }

  const std::shared_ptr<Weight> weight_;
  PendingPart pending_;
  std::vector<LoadPart> parts_;
};

}  // namespace

std::unique_ptr<Command> load_weight(std::shared_ptr<Weight> weight, std::vector<WeightPart> parts) {
  return std::make_unique<LoadWeight>(std::move(weight), std::move(parts));
}

std::unique_ptr<Command> load_weight(std::shared_ptr<Weight> weight, const WeightPart& part) {
  return load_weight(std::move(weight), std::vector<WeightPart>{part});
}

}  // namespace nibblet
