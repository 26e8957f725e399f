#include "native/runtime/load_part.h"

#include "kernels/pack/layout.h"

namespace nibblet {
namespace {

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

}  // namespace

LoadPart::LoadPart(const Weight& weight, WeightPart part) : part_(std::move(part)) {
  const WeightView view = weight.view();
  format_ = view.format;
  layout_ = view.layout;
  out_ = view.out;
  in_ = size_t(view.in);
  const FileTensor &elements = part_.elements, &blocks = part_.block_scales, &scales = part_.row_scales;
  const std::string& name = elements.name;
  if (!dtype_fits(format_, elements.dtype)) {
    throw invalid("`" + name + "` in " + dtype_name(elements.dtype) + " does not fit the weight's format");
  }
  if (part_.matrix < 0 || part_.matrix >= view.matrices || part_.first_row < 0 || part_.rows < 1 ||
      int64_t(part_.first_row) + part_.rows > view.out) {
    throw invalid("`" + name + "` does not lie inside its weight");
  }
  if ((format_ == Format::nvfp4) != static_cast<bool>(blocks)) {
    throw invalid("block scales go with nvfp4 weights: `" + name + "`");
  }
  for (const float scale : {part_.scale, part_.input_scale}) {
    if (!is_scale(scale)) throw bad_scale(elements, scale);
  }
  if (scales && !widens(scales.dtype)) {
    throw invalid("row scales `" + scales.name + "` are " + dtype_name(scales.dtype) +
                  ", expected f32, bf16 or f16");
  }
  row_bytes_ = nibblet::row_bytes(format_, view.in);
  file_row_bytes_ = format_ == Format::f32 ? in_ * dtype_bytes(elements.dtype) : row_bytes_;
  elements.file->check(elements.offset, file_bytes(rows()));
  if (blocks) blocks.file->check(blocks.offset, block_bytes(rows()));
  if (scales) scales.file->check(scales.offset, rows() * dtype_bytes(scales.dtype));
}

PackArgs LoadPart::pack_args(const Weight& weight, size_t first, size_t count, const uint8_t* elements,
                             const uint8_t* block_scales) const {
  return {format_,
          layout_,
          out_,
          int32_t(in_),
          part_.first_row + int32_t(first),
          int32_t(count),
          elements,
          part_.block_scales ? block_scales : nullptr,
          weight.matrix(part_.matrix),
          nullptr};
}

Error bad_scale(const FileTensor& tensor, float value) {
  return bad_format("the scale of tensor `" + tensor.name + "` in " + tensor.file->path() + " is " +
                    std::to_string(value) +
                    ", expected a finite number of at least 0; the file is damaged or not what its "
                    "configuration says");
}

Error bad_element(const FileTensor& tensor, size_t index) {
  return bad_format("tensor `" + tensor.name + "` in " + tensor.file->path() +
                    " holds a NaN or negative scale at index " + std::to_string(index) +
                    "; the file is damaged or not what its configuration says");
}

}  // namespace nibblet
