#include <algorithm>
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

/// Elements [first, last) of a row; first is a multiple of 16. Exact: a product has at most six significant bits.
template <Format format>
void decode(const Row& row, int32_t first, int32_t last, float* values) {
  for (int32_t k = first; k < last; k++) {
    float& value = values[k - first];
    if constexpr (format == Format::f32) value = load<float>(row.elements, k);
    if constexpr (format == Format::bf16) value = bf16_to_float(load<uint16_t>(row.elements, k));
    if constexpr (format == Format::e4m3) value = e4m3_to_float(row.elements[k]);
    if constexpr (format == Format::nvfp4)
      value = e2m1_to_float(uint8_t(row.elements[k / 2] >> k % 2 * 4) & 15);
  }
  if constexpr (format == Format::nvfp4) {
    for (int32_t block = first; block < last; block += kBlockInputs) {
      float scale = e4m3_to_float(row.block_scales[block / kBlockInputs]);
      for (int32_t k = block; k < block + kBlockInputs; k++) values[k - first] *= scale;
    }
  }
}

// Whole-model comparisons run on this: an element is decoded once for a tile of tokens, a segment at a time, which leaves
// the order of every sum as it is.
constexpr int32_t kSegment = 512;
constexpr int32_t kTokens = 32;

template <Format format>
void matmul(const WeightView& weight, int32_t matrix, const float* const* x, int32_t count, int32_t first,
            int32_t last, float* const* y) {
  const uint8_t* data = weight.data + size_t(matrix) * weight.matrix_bytes;
  const float* row_scales = weight.row_scales + size_t(matrix) * size_t(weight.out);
  for (int32_t tile = 0; tile < count; tile += kTokens) {
    int32_t tokens = std::min(count - tile, kTokens);
    for (int32_t n = first; n < last; n++) {
      Row row = {
          data + size_t(n) * row_bytes(format, weight.in),
          data + rows_scales_offset(weight.out, weight.in) + size_t(n) * (size_t(weight.in) / kBlockInputs)};
      OrderedSum sums[kTokens] = {};
      for (int32_t k = 0; k < weight.in; k += kSegment) {
        float values[kSegment];
        int32_t length = std::min(weight.in - k, kSegment);
        decode<format>(row, k, k + length, values);
        for (int32_t m = 0; m < tokens; m++) {
          const float* inputs = x[tile + m] + k;
          sums[m].add(length, [&](int32_t i) { return inputs[i] * values[i]; });
        }
      }
      for (int32_t m = 0; m < tokens; m++) y[tile + m][n - first] = row_scales[n] * sums[m].total();
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
    case Format::compact_bf16:  // never in rows
      return;
  }
}

}  // namespace nibblet
