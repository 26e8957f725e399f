#pragma once

#include <cstddef>
#include <cstdint>

namespace nibblet {

/// How the elements of a weight are stored. nvfp4: e2m1 codes with one e4m3 scale per 16 inputs.
enum class Format : uint8_t { f32, bf16, e4m3, nvfp4 };

/// How the elements of a weight are ordered.
///
/// rows: as in a checkpoint, one output row after another. For nvfp4 the codes of all rows (low nibble = even
/// column) come first, then the block scales of all rows.
///
/// panels: 16 output rows at a time, inputs padded to a multiple of 16 and rows to a multiple of 16 with zeros, so
/// that a vector of 16 lanes holds one input of 16 rows. Panel after panel; inside a panel, per block of inputs:
///   f32    1 input:   16 floats, lane r = W[r, k]
///   bf16   2 inputs:  32 lanes of 16 bits, lane 2r + j = W[r, k + j]
///   e4m3   4 inputs:  32 lanes of 16 bits, lane 2r + j = W[r, k + j] | W[r, k + 2 + j] << 8
///   nvfp4  16 inputs: two vectors v of 32 lanes of 16 bits, lane 2r + j = sum over n < 4 of
///                     code[r, k + 8v + 2n + j] << 4n; then 16 block scales, one a row. 144 bytes.
/// The pairs (j) are what a bf16 dot-product instruction consumes; the four nibbles of a lane are reached by shifts.
///
/// columns: nvfp4 only, for inputs that are mostly zero: what a zero multiplies need not be read. Rows are padded to a
/// multiple of 128 with zeros, R in all. Per block of 16 inputs: 16 columns, each R / 2 contiguous bytes of codes, then
/// R block scales, one a row in order: 9 R bytes. Inside a column, 128 rows are 16 lanes of 32 bits:
///                     lane r = sum over n < 8 of code[16 n + r, k] << 4n
/// so that a lane's nibble n belongs to panel n of those rows, and every piece begins on a cache line.
enum class Layout : uint8_t { rows, panels, columns };

constexpr int kPanelRows = 16;
constexpr int kColumnRows = 128;
constexpr int kBlockInputs = 16;

/// A packed weight as kernels see it: `matrices` matrices of [out, in] (experts of a layer; otherwise 1).
/// W[n, k] = element(n, k) · block_scale(n, k / 16) · row_scales[n], where only nvfp4 has block scales.
struct WeightView {
  Format format;
  Layout layout;
  int32_t matrices;
  int32_t out;
  int32_t in;
  const uint8_t* data;      ///< matrix m starts at data + m · matrix_bytes, 64-byte aligned
  size_t matrix_bytes;      ///< pack.h: packed_matrix_bytes(format, layout, out, in)
  const float* row_scales;  ///< [matrices, out]: the float32 tensor scale of the part that each row came from
  float input_scale;        ///< multiplier form, for W4A4; 0 when the checkpoint has none
};

constexpr int32_t round_up(int32_t value, int32_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

}  // namespace nibblet
