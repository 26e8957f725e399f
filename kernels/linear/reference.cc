#include <cstring>

#include "kernels/linear/matmul.h"
#include "kernels/numerics/bf16.h"
#include "kernels/numerics/dot.h"
#include "kernels/numerics/e2m1.h"
#include "kernels/numerics/e4m3.h"
#include "kernels/pack/layout.h"

namespace nibblet {
namespace {

/// One row of a Layout::rows matrix.
struct Row {
  const uint8_t* elements;
  const uint8_t* block_scales;
};

template <typename T>
T load(const uint8_t* from, int32_t index) {
  T value;
  std::memcpy(&value, from + size_t(index) * sizeof(T), sizeof(T));
  return value;
}

template <Format format>
float element(const Row& row, int32_t k) {
  if constexpr (format == Format::f32) return load<float>(row.elements, k);
  if constexpr (format == Format::bf16) return bf16_to_float(load<uint16_t>(row.elements, k));
  if constexpr (format == Format::e4m3) return e4m3_to_float(row.elements[k]);
  if constexpr (format == Format::nvfp4) {
    // Exact: the product has at most six significant bits.
    return e2m1_to_float(uint8_t(row.elements[k / 2] >> k % 2 * 4) & 15) *
           e4m3_to_float(row.block_scales[k / kBlockInputs]);
  }
}

template <Format format>
void matmul(const WeightView& weight, int32_t matrix, const float* const* x, int32_t count, int32_t first,
            int32_t last, float* const* y) {
  const uint8_t* data = weight.data + size_t(matrix) * weight.matrix_bytes;
  const float* row_scales = weight.row_scales + size_t(matrix) * size_t(weight.out);
  for (int32_t n = first; n < last; n++) {
    Row row = {
        data + size_t(n) * row_bytes(format, weight.in),
        data + rows_scales_offset(weight.out, weight.in) + size_t(n) * (size_t(weight.in) / kBlockInputs)};
    for (int32_t m = 0; m < count; m++) {
      float sum = ordered_sum(weight.in, [&](int32_t k) { return x[m][k] * element<format>(row, k); });
      y[m][n - first] = row_scales[n] * sum;
    }
  }
}

}  // namespace

void matmul_reference(const WeightView& weight, int32_t matrix, const float* const* x, int32_t count,
                      int32_t first, int32_t last, float* const* y) {
  switch (weight.format) {
    case Format::f32:
      return matmul<Format::f32>(weight, matrix, x, count, first, last, y);
    case Format::bf16:
      return matmul<Format::bf16>(weight, matrix, x, count, first, last, y);
    case Format::e4m3:
      return matmul<Format::e4m3>(weight, matrix, x, count, first, last, y);
    case Format::nvfp4:
      return matmul<Format::nvfp4>(weight, matrix, x, count, first, last, y);
  }
}

}  // namespace nibblet
