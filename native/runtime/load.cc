#include "native/runtime/load.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/numerics/bf16.h"
#include "kernels/numerics/f16.h"
#include "kernels/pack/layout.h"
#include "kernels/pack/pack.h"
#include "native/runtime/error.h"

namespace nibblet {
namespace {

Error bad_format(const std::string& message) { return Error("BAD_FORMAT", message); }

template <class Bits>
Bits read_unaligned(const uint8_t* at) {
  Bits bits;
  std::memcpy(&bits, at, sizeof bits);
  return bits;
}

bool widens(DType type) { return type == DType::f32 || type == DType::bf16 || type == DType::f16; }

float widen(const uint8_t* data, DType type, size_t index) {
  switch (type) {
    case DType::f32:
      return read_unaligned<float>(data + index * 4);
    case DType::bf16:
      return bf16_to_float(read_unaligned<uint16_t>(data + index * 2));
    case DType::f16:
      return f16_to_float(read_unaligned<uint16_t>(data + index * 2));
    default:
      throw invalid(std::string("cannot widen ") + dtype_name(type) + " to f32");
  }
}

// Copied, and packed, between two looks at the cancel flag; what a source that has no memory of its own makes at a time.
constexpr size_t kPieceElements = size_t{1} << 20;
constexpr size_t kPieceBytes = size_t{4} << 20;

/// Where sources make bytes, kept from one load to the next: the engine thread runs them one at a time.
thread_local struct {
  std::vector<uint8_t> elements, block_scales, row_scales;
} scratch;

bool is_cancelled(const Execution& execution) {
  return execution.cancelled && execution.cancelled->load(std::memory_order_relaxed);
}

class LoadTensor : public Command {
 public:
  LoadTensor(const Tensor& to, const FileTensor& from) : to_(to), from_(from) {
    if (to.dtype != from.dtype && !(to.dtype == DType::f32 && widens(from.dtype))) {
      throw invalid("cannot load `" + from.name + "`: " + dtype_name(from.dtype) + " into " + describe(to));
    }
    from.file->check(from.offset, size_t(to.elements()) * dtype_bytes(from.dtype));
  }
  const char* name() const override { return "loadTensor"; }

  void run(const Execution& execution) override {
    from_.file->check_size();
    size_t from_size = dtype_bytes(from_.dtype), to_size = dtype_bytes(to_.dtype),
           count = size_t(to_.elements());
    for (size_t first = 0; first < count; first += kPieceElements) {
      size_t piece = std::min(count - first, kPieceElements);
      size_t offset = from_.offset + first * from_size;
      const uint8_t* data = from_.file->range(execution, offset, piece * from_size, scratch.elements);
      if (is_cancelled(execution)) return;
      uint8_t* to = to_.as<uint8_t>() + first * to_size;
      if (to_.dtype == from_.dtype) {
        std::memcpy(to, data, piece * to_size);
      } else {
        for (size_t i = 0; i < piece; ++i) reinterpret_cast<float*>(to)[i] = widen(data, from_.dtype, i);
      }
      from_.file->release(offset, piece * from_size);
    }
  }

 private:
  Tensor to_;
  FileTensor from_;
};

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
    for (const FileTensor* tensor : {&part_.elements, &part_.block_scales, &part_.row_scales}) {
      if (*tensor) tensor->file->check_size();
    }
    copy_row_scales(execution);
    // Panels are made whole.
    size_t rows = std::max(kPieceBytes / row_bytes_ / kPanelRows * kPanelRows, size_t(kPanelRows));
    for (size_t first = 0; first < size_t(part_.rows) && !is_cancelled(execution); first += rows) {
      pack_rows(execution, first, std::min(rows, size_t(part_.rows) - first));
    }
  }

 private:
  void copy_row_scales(const Execution& execution) const {
    float* scales = weight_->row_scales(part_.matrix) + part_.first_row;
    const FileTensor& from = part_.row_scales;
    const uint8_t* data = nullptr;
    if (from) {
      data = from.file->range(execution, from.offset, size_t(part_.rows) * dtype_bytes(from.dtype),
                              scratch.row_scales);
      if (is_cancelled(execution)) return;
    }
    for (size_t row = 0; row < size_t(part_.rows); ++row) {
      scales[row] = data ? widen(data, from.dtype, row) : part_.scale;
      if (!std::isfinite(scales[row]) || scales[row] < 0) {
        throw bad_format(describe_scale(from ? from : part_.elements, scales[row]));
      }
    }
  }

  void pack_rows(const Execution& execution, size_t first, size_t rows) const {
    WeightView view = weight_->view();
    const FileTensor &codes = part_.elements, &blocks = part_.block_scales;
    const size_t at = codes.offset + first * row_bytes_, bytes = rows * row_bytes_;
    const uint8_t* elements = codes.file->range(execution, at, bytes, scratch.elements);
    const size_t row_blocks = size_t(view.in / kBlockInputs), blocks_at = blocks.offset + first * row_blocks;
    const uint8_t* scales =
        blocks ? blocks.file->range(execution, blocks_at, rows * row_blocks, scratch.block_scales) : nullptr;
    if (is_cancelled(execution)) return;
    std::vector<float> widened;
    if (view.format == Format::f32 && codes.dtype != DType::f32) {
      widened.resize(rows * size_t(view.in));
      for (size_t i = 0; i < widened.size(); ++i) widened[i] = widen(elements, codes.dtype, i);
      elements = reinterpret_cast<const uint8_t*>(widened.data());
    }
    std::atomic<int64_t> bad{0};
    PackArgs args{view.format,
                  view.layout,
                  view.out,
                  view.in,
                  part_.first_row + int32_t(first),
                  int32_t(rows),
                  elements,
                  scales,
                  weight_->matrix(part_.matrix),
                  &bad};
    run_phases(execution, pack, kPackPhases, args, double(rows) * view.in);
    if (int64_t found = bad.load()) {
      const FileTensor& tensor = blocks ? blocks : codes;
      const size_t index = size_t(found - 1) + first * (blocks ? row_blocks : size_t(view.in));
      throw bad_format("tensor `" + tensor.name + "` in " + tensor.file->path() +
                       " holds a NaN or negative scale at index " + std::to_string(index) +
                       "; the file is damaged or not what its configuration says");
    }
    codes.file->release(at, bytes);
    if (blocks) blocks.file->release(blocks_at, rows * row_blocks);
  }

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

MappedFile::MappedFile(const std::string& path) : path_(path) {
  // Without O_NONBLOCK a pipe that nobody writes would hang the caller.
  file_ = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  struct stat status{};
  auto fail = [&](const std::string& what) {
    if (file_ >= 0) close(file_);
    throw bad_format("cannot " + what);
  };
  if (file_ < 0 || fstat(file_, &status) != 0) fail("open " + path + ": " + std::strerror(errno));
  if (!S_ISREG(status.st_mode)) fail("map " + path + ": it is no regular file");
  bytes_ = size_t(status.st_size);
  if (bytes_ == 0) return;
  void* mapping = mmap(nullptr, bytes_, PROT_READ, MAP_PRIVATE, file_, 0);
  if (mapping == MAP_FAILED) fail("map " + path + ": " + std::strerror(errno));
  data_ = static_cast<uint8_t*>(mapping);
}

MappedFile::~MappedFile() {
  if (data_) munmap(data_, bytes_);
  close(file_);
}

void MappedFile::check_size() const {
  struct stat status{};
  if (fstat(file_, &status) != 0 || size_t(status.st_size) < bytes_) {
    throw bad_format(path_ + " was cut short while it was being loaded; download it again");
  }
}

void MappedFile::check(size_t offset, size_t bytes) const {
  if (offset > bytes_ || bytes > bytes_ - offset) {
    throw bad_format(path_ + " is truncated: bytes " + std::to_string(offset) + " to " +
                     std::to_string(offset + bytes) + " are wanted, it has " + std::to_string(bytes_) +
                     "; download it again");
  }
}

void MappedFile::release(size_t offset, size_t bytes) const {
  // Outwards, to what the kernel maps around a fault: a page that is dropped too early only comes in again.
  constexpr size_t kAround = size_t{64} << 10;
  const size_t first = offset / kAround * kAround;
  madvise(data_ + first, std::min((offset + bytes + kAround - 1) / kAround * kAround, bytes_) - first,
          MADV_DONTNEED);
}

std::unique_ptr<Command> load_tensor(const Tensor& to, const FileTensor& from) {
  return std::make_unique<LoadTensor>(to, from);
}

std::unique_ptr<Command> load_weight(std::shared_ptr<Weight> weight, const WeightPart& part) {
  return std::make_unique<LoadWeight>(std::move(weight), part);
}

}  // namespace nibblet
