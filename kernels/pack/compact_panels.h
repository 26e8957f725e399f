#pragma once

#include "kernels/pack/compact.h"

/// Format::compact_bf16 in Layout::panels, for the CPU: the elements of a block of 16 inputs of 16 rows in 384 bytes.
///
/// Lane r of the block's eight vectors of 32-bit words in bf16 is what a GPU's lane has in its eight registers, and is spread in
/// the same way (compact.h): word i of its four words of signs and mantissas is lane r of vector i, word i of its two words of
/// exponents lane r of vector 4 + i. Behind the panels come a CompactPanel for each, and the exceptions of all, panel after
/// panel, block after block, row after row.
namespace nibblet {

struct alignas(32) CompactPanel {
  uint8_t bases[kPanelRows];
  uint32_t first;  ///< of its exceptions
  uint32_t count;
};

struct CompactPanelException {
  uint16_t input;
  uint16_t bits;
  uint32_t row;  ///< of the panel
};

/// What kernels multiply inputs by, so that their products with elements of so small exponents are normal float32 numbers: those of
/// inputs from 2^-63 to 2^65. Smaller ones lose bits, and a processor's time with subnormal numbers; larger ones overflow.
constexpr float kCompactInputScale = 0x1p63f;

constexpr size_t compact_panel_plane_offset(int i) { return size_t(i) * 64; }
constexpr size_t compact_panel_exponent_offset(int i) { return 256 + size_t(i) * 64; }

constexpr size_t compact_panels_offset(int32_t out, int32_t in) {
  return size_t(round_up(out, kPanelRows) / kPanelRows) * panel_bytes(Format::compact_bf16, in);
}
constexpr size_t compact_panel_list_offset(int32_t out, int32_t in) {
  return compact_panels_offset(out, in) +
         size_t(round_up(out, kPanelRows) / kPanelRows) * sizeof(CompactPanel);
}
constexpr size_t compact_panels_matrix_bytes(int32_t out, int32_t in, size_t exceptions) {
  return (compact_panel_list_offset(out, in) + exceptions * sizeof(CompactPanelException) + 63) / 64 * 64;
}

/// A bf16 matrix in panels to a compact one. Both stay: they do not overlap.
struct CompactPanelsArgs {
  const uint8_t* matrix;
  int32_t out;
  int32_t in;            ///< at most kCompactMostInputs
  CompactPanel* panels;  ///< one for each
  uint8_t* compact;      ///< compact_panels_matrix_bytes(out, in, exceptions of all), 64-byte aligned
};

constexpr int kCompactPanelsPhases = 1;
/// Writes the best base of each row and how many exceptions the panel has then, not where they begin.
void survey_compact_panels(const CompactPanelsArgs& args, int phase, int worker, int workers);
/// @return the exceptions of all panels, which know then where theirs begin
uint64_t place_compact_exceptions(CompactPanel* panels, int32_t count);
/// Writes the compact matrix.
void compact_panels(const CompactPanelsArgs& args, int phase, int worker, int workers);

/// As compact_element (compact.h).
uint16_t compact_panel_element(const uint8_t* matrix, int32_t out, int32_t in, int32_t row, int32_t column);

}  // namespace nibblet
