#pragma once

#include <bit>
#include <cmath>

#include "kernels/cuda/device.h"
#include "kernels/numerics/dtype.h"
#include "kernels/numerics/e4m3.h"

/// What a warp does with 16 query rows and the cached positions of a tile, on tensor cores. Keys and values go from memory
/// to registers 16 bytes at a time and are their own fragments: the products sum over elements and positions, and give
/// outputs, in whatever order suits the loads. With g = lane / 4 and t = lane % 4:
///   keys    lane has position 8·j + g of the tile, elements 4·t + c of the row in pieces of 16 bytes (c-th piece of t)
///   values  lane has positions 16·h + {2t, 2t + 1, 2t + 8, 2t + 9}, elements 16·g to 16·g + 15
///   scores  lane has rows g and g + 8 of positions 8·j + {2t, 2t + 1}
///   sums    lane has rows g and g + 8 of elements {32·t + i, 32·t + 16 + i}, i < 16
/// Weights are split into three bf16 that sum to them exactly, so that only the additions round.
namespace nibblet::attention_device {

constexpr int kHeadDim = 128;
constexpr int kRows = 16;
/// k16 steps of a product over the head.
constexpr int kKeySteps = kHeadDim / 16;
/// n8 columns of the sums.
constexpr int kValueColumns = kHeadDim / 8;

template <DType kCache>
struct TileShape {
  static constexpr int kPiece = kCache == DType::e4m3 ? 16 : 8;  ///< elements in 16 bytes
  static constexpr int kPositions = 16;                          ///< of a tile
  static constexpr int kStages = kPiece / 8;  ///< tiles whose loads are under way: 32 registers of keys
  static constexpr int kKeyPieces = kHeadDim / 4 / kPiece;  ///< of a lane's part of a key
  static constexpr int kValuePieces = 16 / kPiece;          ///< of a lane's part of a value
  static constexpr int kKeyTiles = kPositions / 8;
  static constexpr int kValueSteps = kPositions / 16;
};

template <DType kCache>
struct Keys {
  uint4 piece[TileShape<kCache>::kKeyTiles][TileShape<kCache>::kKeyPieces];
};
template <DType kCache>
struct Values {
  uint4 piece[TileShape<kCache>::kValueSteps][4][TileShape<kCache>::kValuePieces];
};
/// Fragments of q, in the order of the keys' elements.
struct Queries {
  uint32_t part[kKeySteps][4];
};

__device__ __forceinline__ uint32_t word_of(uint4 piece, int i) {
  return i == 0 ? piece.x : i == 1 ? piece.y : i == 2 ? piece.z : piece.w;
}

/// The highest bit of each byte: whether that e4m3 is a NaN.
__device__ __forceinline__ uint32_t nan_bits(uint32_t word) {
  return ((word & 0x7f7f7f7fu) + 0x01010101u) & 0x80808080u;
}

/// The e4m3 in the upper bytes of both halves as bf16, exactly, but a NaN as 480: see spread_nan.
__device__ __forceinline__ uint32_t widen(uint32_t upper_bytes) {
  // The bits of e4m3 in their places of bf16 stand for 2⁻¹²⁰ of its value, subnormals included.
  return multiply_bf16x2((upper_bytes & 0x80008000u) | (upper_bytes >> 4 & 0x07f007f0u), 0x7b807b80u);
}

/// The address within a row of q, k or v of the four consecutive elements that step `s` of lane t multiplies.
template <DType kCache>
__device__ __forceinline__ int key_element(int s, int t) {
  if constexpr (kCache == DType::e4m3) return s / 4 * 64 + t * 16 + s % 4 * 4;
  return s / 2 * 32 + t * 8 + s % 2 * 4;
}

/// Fragments of two rows of q (bf16), each null where there is none.
template <DType kCache>
__device__ __forceinline__ Queries load_queries(const uint16_t* row, const uint16_t* row_below, int t) {
  Queries q;
#pragma unroll
  for (int s = 0; s < kKeySteps; ++s) {
    const int element = key_element<kCache>(s, t);
    const uint2 none = {0, 0};
    const uint2 a = row == nullptr ? none : *reinterpret_cast<const uint2*>(row + element);
    const uint2 b = row_below == nullptr ? none : *reinterpret_cast<const uint2*>(row_below + element);
    if constexpr (kCache == DType::e4m3) {
      // widen() takes bytes 0 and 2 of a word together, then 1 and 3.
      q.part[s][0] = __byte_perm(a.x, a.y, 0x5410);
      q.part[s][1] = __byte_perm(b.x, b.y, 0x5410);
      q.part[s][2] = __byte_perm(a.x, a.y, 0x7632);
      q.part[s][3] = __byte_perm(b.x, b.y, 0x7632);
    } else {
      q.part[s][0] = a.x;
      q.part[s][1] = b.x;
      q.part[s][2] = a.y;
      q.part[s][3] = b.y;
    }
  }
  return q;
}

/// q · k of the tile, without any scale.
template <DType kCache>
__device__ __forceinline__ void multiply_keys(const Queries& q, const Keys<kCache>& keys,
                                              float (&scores)[TileShape<kCache>::kKeyTiles][4]) {
  using Shape = TileShape<kCache>;
#pragma unroll
  for (int j = 0; j < Shape::kKeyTiles; ++j) {
#pragma unroll
    for (int c = 0; c < 4; ++c) scores[j][c] = 0;
  }
#pragma unroll
  for (int s = 0; s < kKeySteps; ++s) {
#pragma unroll
    for (int j = 0; j < Shape::kKeyTiles; ++j) {
      const uint32_t (&a)[4] = q.part[s];
      if constexpr (kCache == DType::e4m3) {
        const uint32_t word = word_of(keys.piece[j][s / 4], s % 4);
        mma_bf16(scores[j], a[0], a[1], a[2], a[3], widen(word << 8), widen(word));
      } else {
        const uint4 piece = keys.piece[j][s / 2];
        mma_bf16(scores[j], a[0], a[1], a[2], a[3], word_of(piece, s % 2 * 2), word_of(piece, s % 2 * 2 + 1));
      }
    }
  }
}

/// Fragments of the weights of 16 positions: three bf16 each.
struct Weights {
  uint32_t part[3][4];
};

/// `low` and `high` are scores turned weights: of positions 8·j and of the next eight, as multiply_keys leaves them.
__device__ __forceinline__ Weights split_weights(const float (&low)[4], const float (&high)[4]) {
  Weights w;
  const float values[4][2] = {{low[0], low[1]}, {low[2], low[3]}, {high[0], high[1]}, {high[2], high[3]}};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    float a = values[i][0];
    float b = values[i][1];
#pragma unroll
    for (int p = 0; p < 3; ++p) {
      // Cutting off leaves eight bits of the significand, and the difference is exact.
      const uint32_t a_bits = __float_as_uint(a);
      const uint32_t b_bits = __float_as_uint(b);
      w.part[p][i] = __byte_perm(a_bits, b_bits, 0x7632);
      a -= __uint_as_float(a_bits & 0xffff0000u);
      b -= __uint_as_float(b_bits & 0xffff0000u);
    }
  }
  return w;
}

/// Adds weights · values of 16 positions, those of step h of the tile.
template <DType kCache>
__device__ __forceinline__ void add_values(const Weights& w, const Values<kCache>& values, int h,
                                           float (&sums)[kValueColumns][4]) {
#pragma unroll
  for (int i = 0; i < kValueColumns; ++i) {
    uint32_t b0, b1;
    const auto& rows = values.piece[h];
    if constexpr (kCache == DType::e4m3) {
      const uint32_t selector = 0x4000u + unsigned(i % 4) * 0x1010u;
      b0 = widen(__byte_perm(word_of(rows[0][0], i / 4), word_of(rows[1][0], i / 4), selector));
      b1 = widen(__byte_perm(word_of(rows[2][0], i / 4), word_of(rows[3][0], i / 4), selector));
    } else {
      const uint32_t selector = i % 2 == 0 ? 0x5410u : 0x7632u;
      b0 = __byte_perm(word_of(rows[0][i / 8], i % 8 / 2), word_of(rows[1][i / 8], i % 8 / 2), selector);
      b1 = __byte_perm(word_of(rows[2][i / 8], i % 8 / 2), word_of(rows[3][i / 8], i % 8 / 2), selector);
    }
#pragma unroll
    for (int p = 0; p < 3; ++p) {
      mma_bf16(sums[i], w.part[p][0], w.part[p][1], w.part[p][2], w.part[p][3], b0, b1);
    }
  }
}

/// Softmax over tiles: running maxima and sums of rows g and g + 8, and the sums of values they weigh.
struct Running {
  float largest[2] = {-INFINITY, -INFINITY};
  float total[2] = {0, 0};  ///< of this lane's positions alone
  float sums[kValueColumns][4] = {};
};

/// Rows that see nothing have a maximum of -∞: differences are taken from 0 instead, which weighs everything by 0.
__device__ __forceinline__ float softmax_offset(float largest) { return largest == -INFINITY ? 0 : largest; }

/// Scores become weights. `valid`: positions of the tile that the rows see.
template <int kKeyTiles>
__device__ __forceinline__ void weigh(float (&scores)[kKeyTiles][4], float scale, int32_t valid, int t,
                                      Running& running) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float largest = -INFINITY;
#pragma unroll
    for (int j = 0; j < kKeyTiles; ++j) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        float& score = scores[j][2 * half + c];
        score = 8 * j + 2 * t + c < valid ? score * scale : -INFINITY;
        largest = fmaxf(largest, score);
      }
    }
    largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 1));
    largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 2));
    largest = fmaxf(largest, running.largest[half]);
    const float offset = softmax_offset(largest);
    const float rescale = std::exp(running.largest[half] - offset);
    running.largest[half] = largest;
    running.total[half] *= rescale;
#pragma unroll
    for (int j = 0; j < kKeyTiles; ++j) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        float& score = scores[j][2 * half + c];
        score = std::exp(score - offset);
        running.total[half] += score;
      }
    }
    if (__any_sync(~0u, rescale != 1)) {
#pragma unroll
      for (int i = 0; i < kValueColumns; ++i) {
        running.sums[i][2 * half] *= rescale;
        running.sums[i][2 * half + 1] *= rescale;
      }
    }
  }
}

/// Scores of keys with a NaN, and sums of values with one, become NaN; by a warp. What widen() makes of a NaN is a
/// number: this comes after the products.
__device__ __forceinline__ void spread_nan(const Keys<DType::e4m3>& keys,
                                           float (&scores)[TileShape<DType::e4m3>::kKeyTiles][4]) {
  constexpr int kKeyTiles = TileShape<DType::e4m3>::kKeyTiles;
  uint32_t found[kKeyTiles] = {};
  uint32_t any = 0;
#pragma unroll
  for (int j = 0; j < kKeyTiles; ++j) {
#pragma unroll
    for (int i = 0; i < 8; ++i) found[j] |= nan_bits(word_of(keys.piece[j][i / 4], i % 4));
    any |= found[j];
  }
  if (!__any_sync(~0u, any != 0)) return;
  const int t = int(threadIdx.x) % 4;
#pragma unroll
  for (int j = 0; j < kKeyTiles; ++j) {
    const uint32_t lanes = __ballot_sync(~0u, found[j] != 0);
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      if ((lanes >> (4 * (2 * t + c)) & 15) != 0) scores[j][c] = scores[j][2 + c] = NAN;
    }
  }
}
__device__ __forceinline__ void spread_nan(const Values<DType::e4m3>& values,
                                           float (&sums)[kValueColumns][4]) {
  uint32_t found[4] = {};
#pragma unroll
  for (const auto& rows : values.piece) {
#pragma unroll
    for (int r = 0; r < 4; ++r) {
#pragma unroll
      for (int w = 0; w < 4; ++w) found[w] |= nan_bits(word_of(rows[r][0], w));
    }
  }
  if (!__any_sync(~0u, (found[0] | found[1] | found[2] | found[3]) != 0)) return;
  const int t = int(threadIdx.x) % 4;
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    uint32_t of_row = found[w];
    of_row |= __shfl_xor_sync(~0u, of_row, 1);
    of_row |= __shfl_xor_sync(~0u, of_row, 2);
    // Elements from 32·t on were loaded by lanes of g = 2t and 2t + 1.
    const uint32_t low = __shfl_sync(~0u, of_row, 8 * t);
    const uint32_t high = __shfl_sync(~0u, of_row, 8 * t + 4);
#pragma unroll
    for (int b = 0; b < 4; ++b) {
      float (&sum)[4] = sums[4 * w + b];
      if ((low >> (8 * b + 7) & 1) != 0) sum[0] = sum[2] = NAN;
      if ((high >> (8 * b + 7) & 1) != 0) sum[1] = sum[3] = NAN;
    }
  }
}
__device__ __forceinline__ void spread_nan(const Keys<DType::bf16>&, float (&)[2][4]) {}
__device__ __forceinline__ void spread_nan(const Values<DType::bf16>&, float (&)[kValueColumns][4]) {}

}  // namespace nibblet::attention_device
