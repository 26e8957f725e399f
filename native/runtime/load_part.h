#pragma once

#include "kernels/pack/pack.h"
#include "native/runtime/load_source.h"

namespace nibblet {

/// A part that was held against its weight and its files, and how many bytes its rows have.
class LoadPart {
 public:
  /// Throws INVALID_OPTION for a part that does not fit the weight, BAD_FORMAT for one that its files do not hold.
  LoadPart(const Weight& weight, WeightPart part);

  const WeightPart& part() const { return part_; }
  size_t rows() const { return size_t(part_.rows); }
  size_t inputs() const { return in_; }
  /// Whether the file holds f16 or bf16 for a weight of f32.
  bool widened() const { return format_ == Format::f32 && part_.elements.dtype != DType::f32; }
  /// Whether elements are e4m3, among which a NaN is a fault.
  bool is_e4m3() const { return format_ == Format::e4m3; }

  /// Bytes of so many rows in the file, and as they are packed.
  size_t file_bytes(size_t rows) const { return rows * file_row_bytes_; }
  size_t element_bytes(size_t rows) const { return rows * row_bytes_; }
  size_t block_bytes(size_t rows) const { return part_.block_scales ? rows * (in_ / kBlockInputs) : 0; }

  /// Rows [first, first + count) of the part, which lie at `elements` and `block_scales`, into the weight.
  PackArgs pack_args(const Weight& weight, size_t first, size_t count, const uint8_t* elements,
                     const uint8_t* block_scales) const;
  float* row_scales(const Weight& weight, size_t first) const {
    return weight.row_scales(part_.matrix) + size_t(part_.first_row) + first;
  }

 private:
  WeightPart part_;
  Format format_;
  Layout layout_;
  int32_t out_;
  size_t in_, row_bytes_, file_row_bytes_;
};

/// What is wrong with a scale for a row, or for a whole matrix, that is not finite and at least 0.
Error bad_scale(const FileTensor& tensor, float value);
/// What is wrong with a tensor that holds a NaN, or a negative block scale.
Error bad_element(const FileTensor& tensor, size_t index);

inline bool is_scale(float value) { return std::isfinite(value) && value >= 0; }

}  // namespace nibblet
