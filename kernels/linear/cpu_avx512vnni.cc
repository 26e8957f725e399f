#ifdef __x86_64__

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/linear/variants.h"
#include "kernels/pack/layout.h"

#define NIBBLET_INLINE inline __attribute__((always_inline))

// After every include: what is defined above stays compiled for any machine.
// GCC 12 takes the undefined pass-through operands inside its own AVX-512 intrinsics for a mistake (bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")

namespace nibblet {
namespace {

/// Most tokens that share one decoding of a block: their sums, the block and what is under way fill the registers.
constexpr int kTile = 16;

/// As in blocks.inc: how far ahead of a block its panel is fetched into the first and the second cache.
constexpr size_t kNearBytes = 1024;
constexpr size_t kFarBytes = 8192;

NIBBLET_INLINE __m512i broadcast_bytes(const int8_t* four) {
  int32_t word;
  std::memcpy(&word, four, sizeof word);
  return _mm512_set1_epi32(word);
}

/// A panel block: 32-bit lane r of codes[i] holds twice the values of row r, plus kBfpWeightOffset, of inputs
/// kBfpOrder[4i] to kBfpOrder[4i + 3].
struct Block {
  static constexpr size_t kBytes = panel_block_bytes(Format::nvfp4);
  __m512i codes[4];
  /// Times 2⁻⁸.
  __m512 scales;

  NIBBLET_INLINE explicit Block(const uint8_t* data) {
    const __m512i table =
        _mm512_broadcast_i32x4(_mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
    const __m512i nibble = _mm512_set1_epi8(15);
    for (int v = 0; v < 2; v++) {
      const __m512i bytes = _mm512_loadu_si512(data + v * 64);
      const __m512i high = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), nibble);
      codes[2 * v] = _mm512_shuffle_epi8(table, _mm512_and_si512(bytes, nibble));
      codes[2 * v + 1] = _mm512_shuffle_epi8(table, high);
    }
    // The bits of an e4m3 number, shifted, are a float16 of the same value times 2⁻⁸, subnormals included.
    const __m128i e4m3 = _mm_loadu_si128(reinterpret_cast<const __m128i*>(data + kPanelScales));
    scales = _mm512_cvtph_ps(_mm256_slli_epi16(_mm256_cvtepu8_epi16(e4m3), 7));
  }
};

/// Tokens whose integer sums are computed in turns. The chains of one token after another fill the core's scheduler with
/// instructions that wait (bench/notes.md).
constexpr int kGroup = 4;

/// Adds to `sums` the products of one block with block b of each token.
template <int tokens>
NIBBLET_INLINE void add_products(const Block& block, const BfpBlock* const* x, int32_t b, __m512* sums) {
  __m512i high[tokens], low[tokens];
#pragma GCC unroll 4
  for (int t = 0; t < tokens; t++) {
    high[t] = _mm512_setzero_si512();
    low[t] = _mm512_set1_epi32(x[t][b].correction);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
#pragma GCC unroll 4
    for (int t = 0; t < tokens; t++) {
      high[t] = _mm512_dpbusd_epi32(high[t], block.codes[i], broadcast_bytes(x[t][b].high + 4 * i));
      low[t] = _mm512_dpbusd_epi32(low[t], block.codes[i], broadcast_bytes(x[t][b].low + 4 * i));
    }
  }
#pragma GCC unroll 4
  for (int t = 0; t < tokens; t++) {
    // All exact but the last addition: an integer sum is below 2²², a block scale has four bits, the other is a power of two.
    const __m512 products = _mm512_cvtepi32_ps(_mm512_add_epi32(low[t], _mm512_slli_epi32(high[t], 8)));
    const __m512 scales = _mm512_mul_ps(block.scales, _mm512_set1_ps(x[t][b].scale));
    sums[t] = _mm512_fmadd_ps(products, scales, sums[t]);
  }
}

struct Panel {
  const uint8_t* data;
  int32_t blocks;
  /// Times 2⁷: what scales lack, and half for the doubled values.
  __m512 row_scales;
  int32_t offset;  ///< in rows of y
};

template <int tokens>
void multiply_tile(const Panel& panel, const BfpBlock* const* x, float* const* y) {
  __m512 sums[tokens];
  for (int t = 0; t < tokens; t++) sums[t] = _mm512_setzero_ps();
  const uint8_t* data = panel.data;
  for (int32_t b = 0; b < panel.blocks; b++, data += Block::kBytes) {
    for (size_t line = 0; line < Block::kBytes; line += 64) {
      __builtin_prefetch(data + kNearBytes + line);
      __builtin_prefetch(data + kFarBytes + line, 0, 2);
    }
    const Block block(data);
#pragma GCC unroll 4
    for (int t = 0; t + kGroup <= tokens; t += kGroup) add_products<kGroup>(block, x + t, b, sums + t);
    constexpr int rest = tokens % kGroup;
    if constexpr (rest > 0) add_products<rest>(block, x + tokens - rest, b, sums + tokens - rest);
  }
  for (int t = 0; t < tokens; t++) {
    _mm512_storeu_ps(y[t] + panel.offset, _mm512_mul_ps(sums[t], panel.row_scales));
  }
}

template <int most>
void multiply_tile_of(int32_t tokens, const Panel& panel, const BfpBlock* const* x, float* const* y) {
  if constexpr (most > 1) {
    if (tokens < most) return multiply_tile_of<most - 1>(tokens, panel, x, y);
  }
  multiply_tile<most>(panel, x, y);
}

void multiply(const WeightView& weight, int32_t matrix, const BfpBlock* const* x, int32_t count,
              int32_t first, int32_t last, float* const* y) {
  const size_t bytes = panel_bytes(Format::nvfp4, weight.in);
  const uint8_t* data = weight.data + size_t(matrix) * weight.matrix_bytes;
  const float* row_scales = weight.row_scales + size_t(matrix) * size_t(weight.out);
  for (int32_t n = first; n < last; n += kPanelRows) {
    const int32_t rows = weight.out - n < kPanelRows ? weight.out - n : kPanelRows;
    const __m512 scales = _mm512_maskz_loadu_ps(__mmask16((1u << rows) - 1), row_scales + n);
    const Panel panel = {data + size_t(n / kPanelRows) * bytes,
                         round_up(weight.in, kBlockInputs) / kBlockInputs,
                         _mm512_mul_ps(scales, _mm512_set1_ps(128.0f)), n - first};
    // In as few tiles as it takes, of like sizes.
    for (int32_t tiles = (count + kTile - 1) / kTile, done = 0; tiles > 0; tiles--) {
      const int32_t tokens = (count - done + tiles - 1) / tiles;
      multiply_tile_of<kTile>(tokens, panel, x + done, y + done);
      done += tokens;
    }
  }
}

NIBBLET_INLINE BfpBlock convert(const float* x) {
  const __m128i order =
      _mm_setr_epi8(kBfpOrder[0], kBfpOrder[1], kBfpOrder[2], kBfpOrder[3], kBfpOrder[4], kBfpOrder[5],
                    kBfpOrder[6], kBfpOrder[7], kBfpOrder[8], kBfpOrder[9], kBfpOrder[10], kBfpOrder[11],
                    kBfpOrder[12], kBfpOrder[13], kBfpOrder[14], kBfpOrder[15]);
  const __m512 values = _mm512_loadu_ps(x);
  // As integers, magnitudes order as floats do, and NaN above infinity above the rest.
  const __m512i magnitudes = _mm512_and_si512(_mm512_castps_si512(values), _mm512_set1_epi32(0x7fffffff));
  const int32_t exponent = _mm512_reduce_max_epi32(magnitudes) >> 23;
  const int32_t scale_exponent = exponent - 13 > 1 ? exponent - 13 : 1;
  const __m512 inverse = _mm512_castsi512_ps(_mm512_set1_epi32((254 - scale_exponent) << 23));
  const bool finite = exponent < 255;
  const __m512i codes =
      _mm512_maskz_cvtps_epi32(finite ? __mmask16(-1) : __mmask16(0), _mm512_mul_ps(values, inverse));
  const __m512i high = _mm512_srai_epi32(_mm512_add_epi32(codes, _mm512_set1_epi32(128)), 8);
  BfpBlock block;
  const auto store = [&](int8_t* to, __m512i bytes) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm_shuffle_epi8(_mm512_cvtepi32_epi8(bytes), order));
  };
  store(block.high, high);
  store(block.low, codes);
  block.correction = -kBfpWeightOffset * _mm512_reduce_add_epi32(codes);
  const int32_t scale = finite ? scale_exponent << 23 : 0x7fc00000;
  std::memcpy(&block.scale, &scale, sizeof scale);
  return block;
}

}  // namespace

void matmul_bfp_avx512vnni(const WeightView& weight, int32_t matrix, const BfpBlock* const* x, int32_t count,
                           int32_t first, int32_t last, float* const* y) {
  multiply(weight, matrix, x, count, first, last, y);
  // GCC leaves it out after functions with vector arguments, and SSE code then runs up to a hundred times slower.
  _mm256_zeroupper();
}

void bfp_from_floats_avx512vnni(const float* x, int32_t count, BfpBlock* to) {
  for (int32_t b = 0; b < count; b++) to[b] = convert(x + b * kBlockInputs);
  _mm256_zeroupper();
}

}  // namespace nibblet

#pragma GCC pop_options
#endif
