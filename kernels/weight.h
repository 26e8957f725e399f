#pragma once

#include <cstddef>
#include <cstdint>

namespace nibblet {

/// How the elements of a weight are stored. nvfp4: e2m1 codes with one e4m3 scale per 16 inputs. compact_bf16: bf16 in 12
/// bits, exactly (pack/compact.h); made of a bf16 weight once it is loaded.
enum class Format : uint8_t { f32, bf16, e4m3, nvfp4, compact_bf16 };

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
///   compact_bf16  16 inputs, 384 bytes, and more behind the panels: pack/compact_panels.h. At most 65,536 inputs.
/// The pairs (j) are what a bf16 dot-product instruction consumes; the four nibbles of a lane are reached by shifts.
///
/// columns: nvfp4 only, for inputs that are mostly zero: what a zero multiplies need not be read. Rows are padded to a
/// multiple of 128 with zeros, R in all. Per block of 16 inputs: 16 columns, each R / 2 contiguous bytes of codes, then
/// R block scales, one a row in order: 9 R bytes. Inside a column, 128 rows are 16 lanes of 32 bits:
///                     lane r = sum over n < 8 of code[16 n + r, k] << 4n
/// so that a lane's nibble n belongs to panel n of those rows, and every piece begins on a cache line.
///
/// fragments: all but f32, for tensor cores. Tiles of 16 rows, one after another; in a tile, unit after unit of inputs.
/// Rows are padded to a multiple of 16 and inputs to whole units, with zeros. A unit is what one warp feeds to
/// mma.m16n8k16 as A: lane 4g + t holds rows g and g + 8. Fragment registers a0 to a3 (device.h, mma_bf16) are
/// (g; slots 2t, 2t + 1), (g + 8; the same), (g; slots 2t + 8, 2t + 9), (g + 8; the same); the inputs behind the slots:
///   nvfp4  128 inputs, 1152 bytes, 8 mma. Slots 2t + e of mma i are input 32t + 4i + e, slots 2t + 8 + e input
///          32t + 4i + 2 + e: the first four mma take block 2t of the unit, the others block 2t + 1. Lane's 32-bit word
///          i (words 0-3 at 16 · lane, 4-7 at 512 + 16 · lane) holds a0 to a3 of mma i, as layout.h spreads them; its
///          word at 1024 + 4 · lane the scales of (g; 2t), (g; 2t + 1), (g + 8; 2t), (g + 8; 2t + 1).
///   bf16   32 inputs, 1024 bytes, 2 mma. Slots 2t + e of mma i are input 8t + 4i + e, slots 2t + 8 + e input
///          8t + 4i + 2 + e. Lane's a0 to a3 of mma i are the 16 bytes at 512 i + 16 · lane.
///   e4m3   32 inputs, 512 bytes, the same slots. Lane's 16 bytes at 16 · lane are words 2i and 2i + 1 for mma i: the
///          low bytes of the 16-bit halves are a0 (a2 in the second word), the high bytes a1 (a3).
///   compact_bf16  32 inputs, 768 bytes, the slots of bf16. The eight registers that bf16 has for a lane, a0 to a3 of mma 0
///          and of mma 1, are spread as compact.h says over the lane's 16 bytes at 16 · lane (signs and mantissas) and
///          8 bytes at 512 + 8 · lane (exponents). Behind the tiles come one CompactRow a row, up to whole tiles, and the
///          list of exceptions. Only whole matrices of at most 65,536 inputs.
enum class Layout : uint8_t { rows, panels, columns, fragments };

constexpr int kPanelRows = 16;
constexpr int kColumnRows = 128;
constexpr int kFragmentRows = 16;
constexpr int kBlockInputs = 16;

/// A packed weight as kernels see it: `matrices` matrices of [out, in] (experts of a layer; otherwise 1).
/// W[n, k] = element(n, k) · block_scale(n, k / 16) · row_scales[n], where only nvfp4 has block scales.
struct WeightView {
  Format format;
  Layout layout;
  int32_t matrices;
  int32_t out;
  int32_t in;
  const uint8_t* data;  ///< matrix m starts at data + m · matrix_bytes, 64-byte aligned
  size_t matrix_bytes;  ///< pack.h: packed_matrix_bytes(format, layout, out, in), and a list of exceptions
  const float* row_scales;  ///< [matrices, out]: the float32 tensor scale of the part that each row came from
  float input_scale;        ///< multiplier form, for W4A4; 0 when the checkpoint has none
};

constexpr int32_t round_up(int32_t value, int32_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

}  // namespace nibblet
