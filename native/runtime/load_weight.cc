#include <algorithm>
#include <cmath>

#include "kernels/numerics/partition.h"
#include "kernels/pack/layout.h"
#include "kernels/pack/pack.h"
#include "native/runtime/load_source.h"
#if NIBBLET_CUDA
#include "kernels/pack/cuda.h"
#include "native/runtime/cuda/execution.h"
#include "native/runtime/cuda/staging.h"
#endif

namespace nibblet {
namespace {

/// Packed between two looks at the cancel flag; what a source that has no memory of its own makes at a time.
constexpr size_t kPieceBytes = size_t{4} << 20;

bool dtype_fits(Format format, DType type) {
  switch (format) {
    case Format::f32:
      return widens(type);
    case Format::bf16:
      return type == DType::bf16;
    case Format::e4m3:
      return type == DType::e4m3;
    case Format::nvfp4:
      return type == DType::u8;
  }
  return false;
}

class LoadWeight : public Command {
 public:
  LoadWeight(std::shared_ptr<Weight> weight, const WeightPart& part)
      : weight_(std::move(weight)), part_(part) {
    WeightView view = weight_->view();
    const std::string& name = part.elements.name;
    if (!dtype_fits(view.format, part.elements.dtype)) {
      throw invalid("`" + name + "` in " + dtype_name(part.elements.dtype) +
                    " does not fit the weight's format");
    }
    if (part.matrix < 0 || part.matrix >= view.matrices || part.first_row < 0 || part.rows < 1 ||
        int64_t(part.first_row) + part.rows > view.out) {
      throw invalid("`" + name + "` does not lie inside its weight");
    }
    if ((view.format == Format::nvfp4) != static_cast<bool>(part.block_scales)) {
      throw invalid("block scales go with nvfp4 weights: `" + name + "`");
    }
    for (float scale : {part.scale, part.input_scale}) {
      if (!std::isfinite(scale) || scale < 0) throw bad_format(describe_scale(part.elements, scale));
    }
    if (part.row_scales && !widens(part.row_scales.dtype)) {
      throw invalid("row scales `" + part.row_scales.name + "` are " + dtype_name(part.row_scales.dtype) +
                    ", expected f32, bf16 or f16");
    }
    size_t rows = size_t(part.rows);
    row_bytes_ = row_bytes(view.format, view.in);
    if (view.format == Format::f32) row_bytes_ = size_t(view.in) * dtype_bytes(part.elements.dtype);
    part.elements.file->check(part.elements.offset, rows * row_bytes_);
    if (part.block_scales) {
      part.block_scales.file->check(part.block_scales.offset, rows * size_t(view.in / kBlockInputs));
    }
    if (part.row_scales) {
      part.row_scales.file->check(part.row_scales.offset, rows * dtype_bytes(part.row_scales.dtype));
    }
    weight_->raise_input_scale(part.input_scale);
  }
  const char* name() const override { return "loadWeight"; }

  void run(const Execution& execution) override {
    check_sizes();
    copy_row_scales(execution, weight_->row_scales(part_.matrix) + part_.first_row);
    // Panels are made whole.
    for_pieces(execution, kPieceBytes / row_bytes_ / kPanelRows * kPanelRows, kPanelRows,
               [&](const Source& source) {
                 PackArgs args = pack_args(source);
                 std::atomic<int64_t> bad{0};
                 args.bad = &bad;
                 run_phases(execution, pack, kPackPhases, args, double(source.rows) * args.in);
                 if (bad != 0) fail_at(size_t(bad - 1), source);
               });
  }

#if NIBBLET_CUDA
  void enqueue(const CudaExecution& execution) override {
    check_sizes();
    CudaStaging& staging = *execution.staging;
    const WeightView view = weight_->view();
    const size_t blocks = part_.block_scales ? size_t(view.in / kBlockInputs) : 0;
    const size_t element_bytes = row_bytes(view.format, view.in), row = element_bytes + blocks;
    // Columns are made of chunks of rows. A piece of one row of any model fits.
    const size_t rows = CudaStaging::kPieceBytes / row / kColumnRows * kColumnRows;
    for_pieces(
        execution.host, rows, std::max<size_t>(CudaStaging::kPieceBytes / row, 1), [&](const Source& source) {
          const size_t count = source.rows * element_bytes;
          uint8_t* to = staging.host();
          copy_checked(execution.host, source, source.elements, count, view.format == Format::e4m3 ? 0x7f : 0,
                       to);
          if (blocks)
            copy_checked(execution.host, source, source.block_scales, source.rows * blocks, 0xff, to + count);
          staging.send(0, source.rows * row, staging.device());
          PackArgs args = pack_args(source);
          args.elements = staging.device();
          args.block_scales = blocks ? staging.device() + count : nullptr;
          check_cuda(pack_cuda(args, execution.target), "packing a weight");
          staging.next();
        });
    if (is_cancelled(execution.host)) return;
    copy_row_scales(execution.host, reinterpret_cast<float*>(staging.host()));
    staging.send(0, size_t(part_.rows) * sizeof(float), weight_->row_scales(part_.matrix) + part_.first_row);
    staging.next();
  }
#endif

 private:
  /// Some rows of the part, as the checkpoint holds them but for f16 and bf16 that become f32.
  struct Source {
    size_t first;
    size_t rows;
    const uint8_t* elements;
    const uint8_t* block_scales;
  };

  void check_sizes() const {
    for (const FileTensor* tensor : {&part_.elements, &part_.block_scales, &part_.row_scales}) {
      if (*tensor) tensor->file->check_size();
    }
  }

  void copy_row_scales(const Execution& execution, float* scales) const {
    const FileTensor& from = part_.row_scales;
    const uint8_t* data = nullptr;
    if (from) {
      data = from.file->range(execution, from.offset, size_t(part_.rows) * dtype_bytes(from.dtype),
                              load_scratch.row_scales);
      if (is_cancelled(execution)) return;
    }
    for (size_t row = 0; row < size_t(part_.rows); ++row) {
      scales[row] = data ? widen(data, from.dtype, row) : part_.scale;
      if (!std::isfinite(scales[row]) || scales[row] < 0) {
        throw bad_format(describe_scale(from ? from : part_.elements, scales[row]));
      }
    }
  }

  /// `piece(source)` for `rows` rows at a time, or `least` where that is none.
  template <class Piece>
  void for_pieces(const Execution& execution, size_t rows, size_t least, const Piece& piece) const {
    const WeightView view = weight_->view();
    const FileTensor &codes = part_.elements, &blocks = part_.block_scales;
    const size_t row_blocks = size_t(view.in / kBlockInputs), step = std::max(rows, least);
    std::vector<float> widened;
    for (size_t first = 0; first < size_t(part_.rows) && !is_cancelled(execution); first += step) {
      const size_t count = std::min(step, size_t(part_.rows) - first);
      const size_t at = codes.offset + first * row_bytes_, bytes = count * row_bytes_;
      const size_t blocks_at = blocks.offset + first * row_blocks, block_bytes = count * row_blocks;
      Source source{first, count, codes.file->range(execution, at, bytes, load_scratch.elements), nullptr};
      if (blocks)
        source.block_scales =
            blocks.file->range(execution, blocks_at, block_bytes, load_scratch.block_scales);
      if (is_cancelled(execution)) return;
      if (view.format == Format::f32 && codes.dtype != DType::f32) {
        widened.resize(count * size_t(view.in));
        for (size_t i = 0; i < widened.size(); ++i) widened[i] = widen(source.elements, codes.dtype, i);
        source.elements = reinterpret_cast<const uint8_t*>(widened.data());
      }
      piece(source);
      codes.file->release(at, bytes);
      if (blocks) blocks.file->release(blocks_at, block_bytes);
    }
  }

  PackArgs pack_args(const Source& source) const {
    const WeightView view = weight_->view();
    return {view.format,
            view.layout,
            view.out,
            view.in,
            part_.first_row + int32_t(source.first),
            int32_t(source.rows),
            source.elements,
            source.block_scales,
            weight_->matrix(part_.matrix),
            nullptr};
  }

  /// @param index  of a bad scale or element, from the first of `source`
  [[noreturn]] void fail_at(size_t index, const Source& source) const {
    const WeightView view = weight_->view();
    const FileTensor& tensor = part_.block_scales ? part_.block_scales : part_.elements;
    index += source.first * size_t(part_.block_scales ? view.in / kBlockInputs : view.in);
    throw bad_format("tensor `" + tensor.name + "` in " + tensor.file->path() +
                     " holds a NaN or negative scale at index " + std::to_string(index) +
                     "; the file is damaged or not what its configuration says");
  }

#if NIBBLET_CUDA
  struct CopyArgs {
    const uint8_t* from;
    uint8_t* to;
    size_t bytes;
    uint8_t mask;  ///< of the bits in which 0x7f and above is bad; 0: none is
    std::atomic<int64_t>* bad;
  };

  static void copy_part(const CopyArgs& args, int, int worker, int workers) {
    const Range range = partition(int64_t(args.bytes), worker, workers);
    const uint8_t* from = args.from + range.first;
    const size_t count = size_t(range.last - range.first);
    std::memcpy(args.to + range.first, from, count);
    uint8_t largest = 0;
    for (size_t i = 0; i < count && args.mask; ++i) largest = std::max<uint8_t>(largest, from[i] & args.mask);
    if (largest < 0x7f) return;
    for (size_t i = 0; i < count; ++i) {
      if ((from[i] & args.mask) >= 0x7f) return args.bad->store(range.first + int64_t(i) + 1);
    }
  }

  void copy_checked(const Execution& execution, const Source& source, const uint8_t* from, size_t bytes,
                    uint8_t mask, uint8_t* to) const {
    std::atomic<int64_t> bad{0};
    // A copied byte costs about what four multiply-adds do.
    run_phases(execution, copy_part, 1, CopyArgs{from, to, bytes, mask, &bad}, 4.0 * double(bytes));
    if (bad != 0) fail_at(size_t(bad - 1), source);
  }
#endif

  static std::string describe_scale(const FileTensor& tensor, float value) {
    return "the scale of tensor `" + tensor.name + "` in " + tensor.file->path() + " is " +
           std::to_string(value) +
           ", expected a finite number of at least 0; the file is damaged or not what its configuration says";
  }

  std::shared_ptr<Weight> weight_;
  WeightPart part_;
  size_t row_bytes_;
};

}  // namespace

std::unique_ptr<Command> load_weight(std::shared_ptr<Weight> weight, const WeightPart& part) {
  return std::make_unique<LoadWeight>(std::move(weight), part);
}

}  // namespace nibblet
