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
    case Format::compact_bf16:
      break;
  }
  return false;
}

/// A part that its weight is to wait for.
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
  LoadWeight(std::shared_ptr<Weight> weight, const WeightPart& part)
      : weight_(std::move(weight)), part_(part), pending_(weight_) {
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
    const size_t rows = std::max(kPieceBytes / row_bytes_ / kPanelRows * kPanelRows, size_t(kPanelRows));
    for_pieces(execution, rows, [&](size_t first, size_t count) {
      with_source(execution, first, count, [&](const Source& source) {
        PackArgs args = pack_args(first, count, source.elements, source.block_scales);
        std::atomic<int64_t> bad{0};
        args.bad = &bad;
        run_phases(execution, pack, kPackPhases, args, double(count) * args.in);
        if (bad != 0) fail_at(size_t(bad - 1), first);
      });
    });
  }

#if NIBBLET_CUDA
  void enqueue(const CudaExecution& execution) override {
    if (!execution.staging) throw invalid("a load cannot be captured: enqueue it outside of the graph");
    pending_.start(execution.target.stream);
    check_sizes();
    const size_t row = element_bytes(1) + block_bytes(1);
    if (row > CudaStaging::kPieceBytes) {
      throw bad_format("tensor `" + part_.elements.name + "` in " + part_.elements.file->path() +
                       " has rows of more than " + std::to_string(CudaStaging::kPieceBytes) +
                       " bytes, which no model has");
    }
    CudaStaging& staging = *execution.staging;
    // Columns are made of chunks of 128 rows.
    const size_t chunks = CudaStaging::kPieceBytes / row / kColumnRows * kColumnRows;
    const size_t rows = chunks > 0 ? chunks : CudaStaging::kPieceBytes / row;
    for_pieces(execution.host, rows, [&](size_t first, size_t count) {
      uint8_t *elements = staging.device(), *scales = elements + element_bytes(count);
      if (!make_on_device(execution, first, count, elements, scales)) {
        with_source(execution.host, first, count, [&](const Source& source) {
          uint8_t* host = staging.host();
          copy_checked(execution.host, first, source.elements, element_bytes(count), element_mask(), host);
          copy_checked(execution.host, first, source.block_scales, block_bytes(count), 0xff,
                       host + element_bytes(count));
          staging.send(0, count * row, elements);
        });
      }
      check_cuda(pack_cuda(pack_args(first, count, elements, scales), execution.target), "packing a weight");
      staging.next();
    });
    constexpr size_t kScales = CudaStaging::kPieceBytes / sizeof(float);
    std::vector<float> scales(size_t(part_.rows));
    copy_row_scales(execution.host, scales.data());
    for_pieces(execution.host, kScales, [&](size_t first, size_t count) {
      std::memcpy(staging.host(), scales.data() + first, count * sizeof(float));
      staging.send(0, count * sizeof(float),
                   weight_->row_scales(part_.matrix) + part_.first_row + int32_t(first));
      staging.next();
    });
  }
#endif

 private:
  /// Some rows of the part, as the checkpoint holds them but for f16 and bf16 that become f32.
  struct Source {
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

  /// Bytes of so many rows as they are packed.
  size_t element_bytes(size_t rows) const {
    const WeightView view = weight_->view();
    return rows * row_bytes(view.format, view.in);
  }
  size_t block_bytes(size_t rows) const {
    return part_.block_scales ? rows * size_t(weight_->view().in / kBlockInputs) : 0;
  }
  bool widened() const { return weight_->view().format == Format::f32 && part_.elements.dtype != DType::f32; }

  /// `piece(first, count)` for `rows` rows at a time.
  template <class Piece>
  void for_pieces(const Execution& execution, size_t rows, const Piece& piece) const {
    for (size_t first = 0; first < size_t(part_.rows) && !is_cancelled(execution); first += rows)
      piece(first, std::min(rows, size_t(part_.rows) - first));
  }

  /// `use(source)` of rows [first, first + count), unless cancelled.
  template <class Use>
  void with_source(const Execution& execution, size_t first, size_t count, const Use& use) const {
    const FileTensor &codes = part_.elements, &blocks = part_.block_scales;
    const size_t at = codes.offset + first * row_bytes_, bytes = count * row_bytes_;
    const size_t blocks_at = blocks.offset + block_bytes(first), scales = block_bytes(count);
    Source source{codes.file->range(execution, at, bytes, load_scratch.elements), nullptr};
    if (blocks)
      source.block_scales = blocks.file->range(execution, blocks_at, scales, load_scratch.block_scales);
    if (is_cancelled(execution)) return;
    std::vector<float> wide;
    if (widened()) {
      wide.resize(count * size_t(weight_->view().in));
      for (size_t i = 0; i < wide.size(); ++i) wide[i] = widen(source.elements, codes.dtype, i);
      source.elements = reinterpret_cast<const uint8_t*>(wide.data());
    }
    use(source);
    codes.file->release(at, bytes);
    if (blocks) blocks.file->release(blocks_at, scales);
  }

  PackArgs pack_args(size_t first, size_t count, const uint8_t* elements, const uint8_t* scales) const {
    const WeightView view = weight_->view();
    return {view.format,
            view.layout,
            view.out,
            view.in,
            part_.first_row + int32_t(first),
            int32_t(count),
            elements,
            part_.block_scales ? scales : nullptr,
            weight_->matrix(part_.matrix),
            nullptr};
  }

  /// @param index  of a bad scale or element, from those of row `first` of the part on
  [[noreturn]] void fail_at(size_t index, size_t first) const {
    const FileTensor& tensor = part_.block_scales ? part_.block_scales : part_.elements;
    index += part_.block_scales ? block_bytes(first) : first * size_t(weight_->view().in);
    throw bad_format("tensor `" + tensor.name + "` in " + tensor.file->path() +
                     " holds a NaN or negative scale at index " + std::to_string(index) +
                     "; the file is damaged or not what its configuration says");
  }

#if NIBBLET_CUDA
  /// False when the bytes have to come by way of the host.
  bool make_on_device(const CudaExecution& execution, size_t first, size_t count, uint8_t* elements,
                      uint8_t* scales) const {
    const FileTensor &codes = part_.elements, &blocks = part_.block_scales;
    if (widened()) return false;
    if (!codes.file->enqueue_range(execution, codes.offset + first * row_bytes_, count * row_bytes_,
                                   elements))
      return false;
    return !blocks || blocks.file->enqueue_range(execution, blocks.offset + block_bytes(first),
                                                 block_bytes(count), scales);
  }

  /// Of the bits of an element in which 0x7f is NaN; 0 where a NaN is no fault of the file.
  uint8_t element_mask() const { return weight_->view().format == Format::e4m3 ? 0x7f : 0; }

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

  void copy_checked(const Execution& execution, size_t first, const uint8_t* from, size_t bytes, uint8_t mask,
                    uint8_t* to) const {
    if (bytes == 0) return;
    std::atomic<int64_t> bad{0};
    // A copied byte costs about what four multiply-adds do.
    run_phases(execution, copy_part, 1, CopyArgs{from, to, bytes, mask, &bad}, 4.0 * double(bytes));
    if (bad != 0) fail_at(size_t(bad - 1), first);
  }
#endif

  static std::string describe_scale(const FileTensor& tensor, float value) {
    return "the scale of tensor `" + tensor.name + "` in " + tensor.file->path() + " is " +
           std::to_string(value) +
           ", expected a finite number of at least 0; the file is damaged or not what its configuration says";
  }

  std::shared_ptr<Weight> weight_;
  WeightPart part_;
  PendingPart pending_;
  size_t row_bytes_;
};

}  // namespace

std::unique_ptr<Command> load_weight(std::shared_ptr<Weight> weight, const WeightPart& part) {
  return std::make_unique<LoadWeight>(std::move(weight), part);
}

}  // namespace nibblet
