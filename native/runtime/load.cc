#include "native/runtime/load.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/numerics/bf16.h"
#include "kernels/numerics/f16.h"
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

class LoadTensor : public Command {
 public:
  LoadTensor(const Tensor& to, const FileTensor& from) : to_(to), from_(from) {
    bool widens = to.dtype == DType::f32 && (from.dtype == DType::bf16 || from.dtype == DType::f16);
    if (to.dtype != from.dtype && !widens) {
      throw invalid("cannot load `" + from.name + "`: " + dtype_name(from.dtype) + " into " + describe(to));
    }
    data_ = from.file->range(from.offset, size_t(to.elements()) * dtype_bytes(from.dtype));
  }
  const char* name() const override { return "loadTensor"; }

  void run(const Execution&) override {
    if (to_.dtype == from_.dtype) {
      std::memcpy(to_.as<void>(), data_, to_.bytes());
      return;
    }
    float* out = to_.as<float>();
    for (size_t i = 0; i < size_t(to_.elements()); ++i) out[i] = widen(data_, from_.dtype, i);
  }

 private:
  Tensor to_;
  FileTensor from_;
  const uint8_t* data_;
};

size_t element_bytes(Format format, int32_t in) {
  switch (format) {
    case Format::f32:
      return size_t(in) * 4;
    case Format::bf16:
      return size_t(in) * 2;
    case Format::e4m3:
      return size_t(in);
    case Format::nvfp4:
      return size_t(in) / 2;
  }
  return 0;
}

bool dtype_fits(Format format, DType type) {
  switch (format) {
    case Format::f32:
      return type == DType::f32 || type == DType::f16;
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
  LoadWeight(std::shared_ptr<Weight> weight, const WeightPart& part) : weight_(std::move(weight)), part_(part) {
    WeightView view = weight_->view();
    const std::string& name = part.elements.name;
    if (!dtype_fits(view.format, part.elements.dtype)) {
      throw invalid("`" + name + "` in " + dtype_name(part.elements.dtype) + " does not fit the weight's format");
    }
    if (part.matrix < 0 || part.matrix >= view.matrices || part.first_row < 0 || part.rows < 1 ||
        int64_t(part.first_row) + part.rows > view.out) {
      throw invalid("`" + name + "` does not lie inside its weight");
    }
    if ((view.format == Format::nvfp4) != static_cast<bool>(part.block_scales)) {
      throw invalid("block scales go with nvfp4 weights: `" + name + "`");
    }
    if (!std::isfinite(part.scale) || part.scale < 0) throw bad_format(describe_scale(part.elements, part.scale));
    size_t rows = size_t(part.rows);
    size_t row_bytes = element_bytes(view.format, view.in);
    if (part.elements.dtype == DType::f16) row_bytes /= 2;
    elements_ = part.elements.file->range(part.elements.offset, rows * row_bytes);
    if (part.block_scales) {
      scales_ = part.block_scales.file->range(part.block_scales.offset, rows * size_t(view.in / kBlockInputs));
    }
    if (part.row_scales) {
      row_scales_ = part.row_scales.file->range(part.row_scales.offset, rows * dtype_bytes(part.row_scales.dtype));
    }
    weight_->raise_input_scale(part.input_scale);
  }
  const char* name() const override { return "loadWeight"; }

  void run(const Execution& execution) override {
    WeightView view = weight_->view();
    float* out_scales = weight_->row_scales(part_.matrix) + part_.first_row;
    for (size_t row = 0; row < size_t(part_.rows); ++row) {
      out_scales[row] = row_scales_ ? widen(row_scales_, part_.row_scales.dtype, row) : part_.scale;
      if (!std::isfinite(out_scales[row]) || out_scales[row] < 0) {
        throw bad_format(describe_scale(row_scales_ ? part_.row_scales : part_.elements, out_scales[row]));
      }
    }
    std::vector<float> widened;
    const uint8_t* elements = elements_;
    if (part_.elements.dtype == DType::f16) {
      widened.resize(size_t(part_.rows) * size_t(view.in));
      for (size_t i = 0; i < widened.size(); ++i) widened[i] = widen(elements_, DType::f16, i);
      elements = reinterpret_cast<const uint8_t*>(widened.data());
    }
    std::atomic<int64_t> bad{0};
    PackArgs args{view.format, view.layout, view.out, view.in, part_.first_row, part_.rows,
                  elements, scales_, weight_->matrix(part_.matrix), &bad};
    run_phases(execution, pack, kPackPhases, args, double(part_.rows) * view.in);
    if (int64_t at = bad.load()) {
      const FileTensor& tensor = part_.block_scales ? part_.block_scales : part_.elements;
      throw bad_format("tensor `" + tensor.name + "` in " + tensor.file->path() + " holds a NaN or negative scale at index " +
                       std::to_string(at - 1) + "; the file is damaged or not what its configuration says");
    }
  }

 private:
  static std::string describe_scale(const FileTensor& tensor, float value) {
    return "the scale of tensor `" + tensor.name + "` in " + tensor.file->path() + " is " + std::to_string(value) +
           ", expected a finite number of at least 0; the file is damaged or not what its configuration says";
  }

  std::shared_ptr<Weight> weight_;
  WeightPart part_;
  const uint8_t* elements_ = nullptr;
  const uint8_t* scales_ = nullptr;
  const uint8_t* row_scales_ = nullptr;
};

}  // namespace

MappedFile::MappedFile(const std::string& path) : path_(path) {
  int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  struct stat status {};
  if (file < 0 || fstat(file, &status) != 0) {
    std::string reason = std::strerror(errno);
    if (file >= 0) close(file);
    throw bad_format("cannot open " + path + ": " + reason);
  }
  bytes_ = size_t(status.st_size);
  if (bytes_ > 0) {
    void* mapping = mmap(nullptr, bytes_, PROT_READ, MAP_PRIVATE, file, 0);
    if (mapping == MAP_FAILED) {
      std::string reason = std::strerror(errno);
      close(file);
      throw bad_format("cannot map " + path + ": " + reason);
    }
    data_ = static_cast<uint8_t*>(mapping);
  }
  close(file);
}

MappedFile::~MappedFile() {
  if (data_) munmap(data_, bytes_);
}

const uint8_t* MappedFile::range(size_t offset, size_t bytes) const {
  if (offset > bytes_ || bytes > bytes_ - offset) {
    throw bad_format(path_ + " is truncated: bytes " + std::to_string(offset) + " to " + std::to_string(offset + bytes) +
                     " are wanted, it has " + std::to_string(bytes_) + "; download it again");
  }
  return data_ + offset;
}

std::unique_ptr<Command> load_tensor(const Tensor& to, const FileTensor& from) {
  return std::make_unique<LoadTensor>(to, from);
}

std::unique_ptr<Command> load_weight(std::shared_ptr<Weight> weight, const WeightPart& part) {
  return std::make_unique<LoadWeight>(std::move(weight), part);
}

}  // namespace nibblet
