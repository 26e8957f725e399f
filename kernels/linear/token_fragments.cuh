#pragma once

#include "kernels/linear/fragments.cuh"

/// Weights in Layout::fragments as one warp multiplies them with several tokens: column c of B is token c of a tile of eight.
/// nvfp4 elements are multiplied by their block scale first, exact in bf16.
///
/// Tokens are staged in tiles of eight, unit after unit, in the order in which lanes read B: nvfp4 four rows of 32 lanes of
/// 16 bytes a unit and tile (row p: inputs 8p to 8p + 7 of the 32 inputs of t), others one such row.
namespace nibblet::fragments {

/// What sums are to be multiplied by; with compact_bf16 by 2^(base - 63) of the row too (compact.cuh). Inputs are not scaled; for
/// compact_bf16 elements are: kCompactUp.
template <Format format>
constexpr float kTokensScale = format == Format::nvfp4          ? 0x1p7f
                               : format == Format::compact_bf16 ? 0x1p-49f
                                                                : 1.0f;
/// 2^112 as a pair of bf16: compact elements become 2^-14 to 2^2, exactly.
constexpr uint32_t kCompactUp = 0x77807780;

template <Format format>
constexpr int kTokenPieces = format == Format::nvfp4 ? 4 : 1;

/// Bytes of a tile of eight tokens.
constexpr size_t token_tile_bytes(Format format, int32_t in) {
  return size_t(fragment_units(format, in)) * size_t(fragment_inputs(format)) * 16;
}
/// Offset of the 16 bytes with inputs [k, k + 8) of token `token` (0 to 7) of a tile; k is a multiple of 8.
constexpr size_t token_piece_offset(Format format, int32_t token, int32_t k) {
  const int32_t inputs = fragment_inputs(format), in_unit = k % inputs;
  const int32_t t = format == Format::nvfp4 ? in_unit / 32 : in_unit / 8;
  const int32_t row = format == Format::nvfp4 ? in_unit % 32 / 8 : 0;
  return size_t(k / inputs) * size_t(inputs) * 16 + size_t(row * 512 + (token * 4 + t) * 16);
}

/// Decodes what of a unit goes with one piece of inputs, 16 bytes a lane and tile of eight tokens: `multiply(mma, a)` gets
/// the registers of A of two mma (mma 0 and 1), whose B registers are words 2 mma and 2 mma + 1 of the lane's 16 bytes.
/// Values are weight · kTokensScale^-1, block scales included.
template <Format format, class Multiply>
__device__ __forceinline__ void for_each_mma_of_piece(const Unit<format>& unit, int piece,
                                                      const Multiply& multiply) {
  uint32_t a[4];
  if constexpr (format == Format::nvfp4) {
    const int block = piece / 2;
    uint32_t scales[2];
#pragma unroll
    for (int row = 0; row < 2; row++) {
      // At most 448 · 2^119: a finite bf16, and exact.
      const uint32_t bits = __float_as_uint(scale_of(unit.scales, 2 * row + block) * 0x1p119f);
      scales[row] = bits | bits >> 16;
    }
#pragma unroll
    for (int mma = 0; mma < 2; mma++) {
      decode_codes(word_of(block == 0 ? unit.low : unit.high, piece % 2 * 2 + mma), a);
#pragma unroll
      for (int j = 0; j < 4; j++) a[j] = multiply_bf16x2(a[j], scales[j % 2]);
      multiply(mma, a);
    }
  } else {
#pragma unroll
    for (int mma = 0; mma < 2; mma++) {
      registers_of(unit, mma, a);
      if constexpr (format == Format::compact_bf16) {
#pragma unroll
        for (int j = 0; j < 4; j++) a[j] = multiply_bf16x2(a[j], kCompactUp);
      }
      multiply(mma, a);
    }
  }
}

/// The same from a unit in shared memory, and what of it is needed alone: registers of A of the two mma of a piece.
template <Format format>
__device__ __forceinline__ void read_piece(const uint8_t* unit, int piece, int lane, uint32_t (&a)[2][4]) {
  if constexpr (format == Format::nvfp4) {
    const uint2 words = *reinterpret_cast<const uint2*>(unit + piece / 2 * 512 + lane * 16 + piece % 2 * 8);
    const uint32_t scales = reinterpret_cast<const uint32_t*>(unit)[256 + lane] >> (piece / 2 * 8);
    decode_codes(words.x, a[0]);
    decode_codes(words.y, a[1]);
#pragma unroll
    for (int row = 0; row < 2; row++) {
      // At most 448 · 2^119: a finite bf16, and exact.
      const uint32_t bits = __float_as_uint(scale_of(scales, 2 * row) * 0x1p119f);
      const uint32_t scale = bits | bits >> 16;
#pragma unroll
      for (int mma = 0; mma < 2; mma++) {
        a[mma][row] = multiply_bf16x2(a[mma][row], scale);
        a[mma][row + 2] = multiply_bf16x2(a[mma][row + 2], scale);
      }
    }
  } else {
    const Unit<format> whole = read_unit<format>(unit, lane);
    for_each_mma_of_piece(whole, 0, [&](int mma, const uint32_t (&registers)[4]) {
#pragma unroll
      for (int j = 0; j < 4; j++) a[mma][j] = registers[j];
    });
  }
}

/// All of a unit: `multiply(mma, a)` for mma 0 to 2 · kTokenPieces - 1.
template <Format format, class Multiply>
__device__ __forceinline__ void for_each_mma(const Unit<format>& unit, const Multiply& multiply) {
#pragma unroll
  for (int piece = 0; piece < kTokenPieces<format>; piece++) {
    for_each_mma_of_piece(unit, piece,
                          [&](int mma, const uint32_t (&a)[4]) { multiply(2 * piece + mma, a); });
  }
}

/// A lane's B registers of a unit for one tile of eight tokens.
template <Format format>
struct TokenTile {
  uint4 pieces[kTokenPieces<format>];

  /// @param unit  the unit's staged inputs of the tile, in shared or global memory
  __device__ __forceinline__ void read(const uint8_t* unit, int lane) {
#pragma unroll
    for (int p = 0; p < kTokenPieces<format>; p++)
      pieces[p] = reinterpret_cast<const uint4*>(unit)[p * 32 + lane];
  }
  __device__ __forceinline__ uint32_t b0(int i) const { return word_of(pieces[i / 2], i % 2 * 2); }
  __device__ __forceinline__ uint32_t b1(int i) const { return word_of(pieces[i / 2], i % 2 * 2 + 1); }
};

}  // namespace nibblet::fragments
