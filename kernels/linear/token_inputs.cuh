#pragma once

#include "kernels/linear/task.cuh"
#include "kernels/linear/token_fragments.cuh"

namespace nibblet::fragments {

/// Where a lane finds its inputs of each tile of tokens.
template <Format format, int kTokenTiles>
struct TokenInputs {
  const uint8_t* x;
  uint32_t tile[kTokenTiles];
  int unit_bytes, piece_bytes;
  bool direct;

  __device__ __forceinline__ TokenInputs(const LinearTask& task, int32_t first_row, int32_t rows,
                                         bool is_direct, int lane)
      : direct(is_direct) {
    constexpr int kInputs = fragment_inputs(format);
    if (direct) {
      const int64_t stride = task.prologue.x_stride * 2;
      x = static_cast<const uint8_t*>(task.prologue.x) + first_row * stride;
      unit_bytes = kInputs * 2;
      piece_bytes = 16;
#pragma unroll
      for (int i = 0; i < kTokenTiles; i++) {
        // Beyond the last row a lane reads that one again.
        const int32_t row = i * 8 + lane / 4;
        tile[i] = uint32_t((row < rows ? row : rows - 1) * stride) + lane % 4 * (kInputs / 2);
      }
    } else {
      const size_t bytes = token_tile_bytes(format, task.prologue.in);
      x = task.prepared + size_t(first_row / 8) * bytes;
      unit_bytes = kInputs * 16;
      piece_bytes = 512;
#pragma unroll
      for (int i = 0; i < kTokenTiles; i++) tile[i] = uint32_t(i * bytes) + lane * 16;
    }
  }

  /// Where piece `piece` of the whole row begins, pieces of all units counted.
  __device__ __forceinline__ const uint8_t* piece(int32_t piece) const {
    constexpr int kPieces = kTokenPieces<format>;
    return x + size_t(piece / kPieces) * size_t(unit_bytes) + piece % kPieces * piece_bytes;
  }

  /// Input k of token `token` of the block, bf16.
  __device__ __forceinline__ uint16_t element(const Prologue& prologue, int32_t token, int32_t k) const {
    const size_t at = direct ? (size_t(token) * size_t(prologue.x_stride) + size_t(k)) * 2
                             : size_t(token / 8) * token_tile_bytes(format, prologue.in) +
                                   token_piece_offset(format, token % 8, k / 8 * 8) + size_t(k % 8) * 2;
    return *reinterpret_cast<const uint16_t*>(x + at);
  }
};

}  // namespace nibblet::fragments
