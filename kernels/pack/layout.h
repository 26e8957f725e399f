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
    case Format::compact_bf16:
      return 16 * 16 * 3 / 2;
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

/// Layout::fragments: inputs and bytes of a unit, units of a row tile, and bytes of a tile.
constexpr int32_t fragment_inputs(Format format) { return format == Format::nvfp4 ? 128 : 32; }
constexpr size_t fragment_unit_bytes(Format format) {
  return format == Format::nvfp4          ? 1152
         : format == Format::bf16         ? 1024
         : format == Format::compact_bf16 ? 768
                                          : 512;
}
constexpr int32_t fragment_units(Format format, int32_t in) {
  return round_up(in, fragment_inputs(format)) / fragment_inputs(format);
}
constexpr size_t fragment_tile_bytes(Format format, int32_t in) {
  return size_t(fragment_units(format, in)) * fragment_unit_bytes(format);
}

/// Offset, inside a unit, of element (row, k): of its two bytes for bf16, of its byte for e4m3, for nvfp4 of the 32-bit
/// word with its bits.
constexpr size_t fragment_element_offset(Format format, int32_t row, int32_t k) {
  if (format == Format::nvfp4) {
    return size_t(k % 32 / 16 * 512 + (row % 8 * 4 + k / 32) * 16 + k % 16 / 4 * 4);
  }
  const int32_t lane = row % 8 * 4 + k / 8, mma = k % 8 / 4, slots = k % 4 / 2;
  return format == Format::bf16 ? size_t(mma * 512 + lane * 16 + (slots * 2 + row / 8) * 4 + k % 2 * 2)
                                : size_t(lane * 16 + (mma * 2 + slots) * 4 + k % 2 * 2 + row / 8);
}

/// The word of an nvfp4 unit holds, of two inputs (e = 0, 1), fragment registers j = 0 to 3. A kernel wants each with the
/// sign at bit 15 and the magnitude at bits 8 to 6 of its half, which is the bf16 of value · 2^-126. Register 0 lies so
/// already; 1 and 2 need a left shift by 3 and 6; 3 gets there in one widening multiplication (fragments.cuh), which also
/// swaps the halves. That uses all 16 bits of a half.
constexpr uint32_t fragment_code_bits(uint32_t code, int j, int e) {
  const uint32_t sign = code & 8, magnitude = code & 7;
  if (j == 3) return ((sign << 8) | (code & 4) << 8 | (code & 3) << 13) << (16 * (1 - e));
  return (sign << 12 | magnitude << 6) >> (3 * j) << (16 * e);
}
/// The bits of registers 0 and 2 (rows 0 to 7 of a tile); those of 1 and 3 are the others.
constexpr uint32_t kFragmentUpperRows = 0x83c783c7;
static_assert((fragment_code_bits(15, 0, 0) | fragment_code_bits(15, 0, 1) | fragment_code_bits(15, 2, 0) |
               fragment_code_bits(15, 2, 1)) == kFragmentUpperRows);
static_assert((fragment_code_bits(15, 1, 0) | fragment_code_bits(15, 1, 1) | fragment_code_bits(15, 3, 0) |
               fragment_code_bits(15, 3, 1)) == ~kFragmentUpperRows);
constexpr int fragment_register(int32_t row, int32_t k) { return row / 8 + k % 4 / 2 * 2; }
constexpr uint32_t fragment_code(uint32_t word, int32_t row, int32_t k) {
  for (uint32_t code = 1; code < 16; code++) {
    const uint32_t mask = fragment_code_bits(15, fragment_register(row, k), k % 2);
    if ((word & mask) == fragment_code_bits(code, fragment_register(row, k), k % 2)) return code;
  }
  return 0;
}
/// Offset of a block's scale.
constexpr size_t fragment_scale_offset(int32_t row, int32_t k) {
  return size_t(1024 + (row % 8 * 4 + k / 32) * 4 + k % 32 / 16 + row / 8 * 2);
}

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
    case Format::compact_bf16:
      break;
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
    case Format::compact_bf16:
      break;
  }
  return 0;
}

constexpr int nvfp4_nibble_shift(int32_t k) { return k % 4 / 2 * 4; }

/// Offset of the 16 block scales inside an nvfp4 panel block.
constexpr size_t kPanelScales = 128;

/// Layout::rows: offset of the block scales of an nvfp4 matrix.
constexpr size_t rows_scales_offset(int32_t out, int32_t in) { return size_t(out) * (size_t(in) / 2); }

}  // namespace nibblet
