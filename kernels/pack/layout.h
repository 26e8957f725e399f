#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

#include "kernels/weight.h"

/// Byte offsets inside one packed matrix: the arithmetic behind weight.h, shared by packing and by kernels.
namespace nibblet {

static_assert(std::endian::native == std::endian::little, "packed weights hold little-endian 16-bit lanes");

/// Bytes of a block of 16 inputs of one panel.
constexpr size_t panel_block_bytes(Format format) {
  switch (format) {
    case Format::f32:
      return 16 * 16 * 4;
    case Format::bf16:
      return 16 * 16 * 2;
    case Format::e4m3:
      return 16 * 16;
    case Format::nvfp4:
      return 16 * 16 / 2 + 16;
  }
  return 0;
}

/// Bytes of one panel of 16 rows.
constexpr size_t panel_bytes(Format format, int32_t in) {
  return size_t(round_up(in, kBlockInputs) / kBlockInputs) * panel_block_bytes(format);
}

/// Layout::columns: bytes of one column, of 16 columns with their block scales, and of a matrix.
constexpr size_t column_bytes(int32_t out) { return size_t(round_up(out, kColumnRows)) / 2; }
constexpr size_t column_block_bytes(int32_t out) { return column_bytes(out) * (kBlockInputs + 2); }
constexpr size_t columns_matrix_bytes(int32_t out, int32_t in) {
  return size_t(round_up(in, kBlockInputs) / kBlockInputs) * column_block_bytes(out);
}

/// Offset, inside a column, of the byte with the code of `row`, and the code's place in it.
constexpr size_t column_element_offset(int32_t row) {
  return size_t(row / kColumnRows * 64 + row % kPanelRows * 4 + row % kColumnRows / kPanelRows / 2);
}
constexpr int column_nibble_shift(int32_t row) { return row / kPanelRows % 2 * 4; }

/// Offset of the block scales behind 16 columns.
constexpr size_t column_scales_offset(int32_t out) { return column_bytes(out) * kBlockInputs; }

/// Layout::rows: bytes of `columns` elements of a row.
constexpr size_t row_bytes(Format format, int32_t columns) {
  switch (format) {
    case Format::f32:
      return size_t(columns) * 4;
    case Format::bf16:
      return size_t(columns) * 2;
    case Format::e4m3:
      return size_t(columns);
    case Format::nvfp4:
      return size_t(columns) / 2;
  }
  return 0;
}

/// Offset, inside a panel block of 16 inputs, of the unit that holds element (row, k), both below 16: 4 bytes for
/// f32, 2 for bf16, 1 for e4m3, and for nvfp4 the byte of the nibble (nvfp4_nibble_shift tells which).
constexpr size_t panel_element_offset(Format format, int32_t row, int32_t k) {
  switch (format) {
    case Format::f32:
      return size_t(k * 16 + row) * 4;
    case Format::bf16:
      return size_t((k / 2) * 32 + row * 2 + k % 2) * 2;
    case Format::e4m3:
      return size_t((k / 4) * 32 + row * 2 + k % 2) * 2 + size_t(k % 4 / 2);
    case Format::nvfp4:
      return size_t((k / 8) * 32 + row * 2 + k % 2) * 2 + size_t(k % 8 / 4);
  }
  return 0;
}

constexpr int nvfp4_nibble_shift(int32_t k) { return k % 4 / 2 * 4; }

/// Offset of the 16 block scales inside an nvfp4 panel block.
constexpr size_t kPanelScales = 128;

/// Layout::rows: offset of the block scales of an nvfp4 matrix.
constexpr size_t rows_scales_offset(int32_t out, int32_t in) { return size_t(out) * (size_t(in) / 2); }

}  // namespace nibblet
