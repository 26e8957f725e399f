#pragma once

#include <atomic>

#include "kernels/weight.h"

namespace nibblet {

/// Bytes of one packed matrix of [out, in], a multiple of 64; for compact_bf16 without a list of exceptions.
size_t packed_matrix_bytes(Format format, Layout layout, int32_t out, int32_t in);

/// Packs `rows` rows of a checkpoint tensor into a weight, at row `first_row` of matrix `matrix`. Not to compact_bf16, which
/// compact_cuda (cuda.h) makes of a whole matrix.
/// Phases: 1. Sources are row-major as in the checkpoint and may be unaligned (mapped files).
struct PackArgs {
  Format format;
  Layout layout;
  int32_t out;  ///< rows of the whole matrix
  int32_t in;
  int32_t first_row;
  int32_t rows;
  /// f32, bf16, e4m3: [rows, in]; nvfp4: codes [rows, in / 2], low nibble = even column
  const uint8_t* elements;
  const uint8_t* block_scales;  ///< nvfp4: e4m3 [rows, in / 16]; otherwise null
  uint8_t* matrix;              ///< start of the destination matrix; zero beforehand unless Layout::rows
  /// Set to 1 + the index of a block scale (or e4m3 element) that is NaN or a block scale that is negative;
  /// any one of them when there are several. 0 when all is well.
  std::atomic<int64_t>* bad;
};

constexpr int kPackPhases = 1;
void pack(const PackArgs& args, int phase, int worker, int workers);

/// Element [row, column] of a packed matrix times its block scale (without the row scale), as float32: the inverse
/// of pack, for tests and for tools that export a weight.
float unpack_element(const WeightView& weight, int32_t matrix, int32_t row, int32_t column);

}  // namespace nibblet
