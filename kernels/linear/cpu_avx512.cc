#ifdef __x86_64__

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kernels/linear/variants.h"
#include "kernels/pack/compact_panels.h"

#define NIBBLET_INLINE inline __attribute__((always_inline))

// After every include: what is defined above stays compiled for any machine.
// GCC 12 takes the undefined pass-through operands inside its own AVX-512 intrinsics for a mistake (bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")

namespace nibblet {
namespace avx512 {
namespace {

constexpr int kWidth = 16;
constexpr int kTile = 16;
constexpr int kPasses = 1;
constexpr bool kCodesWorthDecodingOnce = false;

#include "kernels/simd/lanes.inc"

NIBBLET_INLINE Floats madd(Floats a, Floats b, Floats c) {
  c.v[0] = _mm512_fmadd_ps(a.v[0], b.v[0], c.v[0]);
  return c;
}

NIBBLET_INLINE Floats madd(Floats a, float b, Floats c) {
  c.v[0] = _mm512_fmadd_ps(a.v[0], _mm512_set1_ps(b), c.v[0]);
  return c;
}

NIBBLET_INLINE uint32_t nonzero(Floats a) {
  uint32_t mask = _mm512_cmp_ps_mask(a.v[0], _mm512_setzero_ps(), _CMP_NEQ_UQ);
  // Where registers are short, GCC 12 spills the mask as 16 bits and reads back 32. Not from a general register.
  __asm__("" : "+r"(mask));
  return mask;
}

#include "kernels/linear/blocks.inc"

/// A code is the index of a 16-entry float table in a register: VPERMPS looks at the low four bits of each lane only,
/// so a nibble needs no mask. The even nibbles (bytes) come down by loading from one, two or three bytes further on,
/// which leaves one shift for every second nibble: loads are free here, the ports of shifts and shuffles are not.
struct Codes {
  const uint8_t* data;

  NIBBLET_INLINE explicit Codes(const uint8_t* data) : data(data) {}

  NIBBLET_INLINE Floats value(int nibble) const {
    // Times 2⁸, which the scales lack.
    const __m512 table =
        _mm512_setr_ps(0.0f, 128.0f, 256.0f, 384.0f, 512.0f, 768.0f, 1024.0f, 1536.0f,  //
                       -0.0f, -128.0f, -256.0f, -384.0f, -512.0f, -768.0f, -1024.0f, -1536.0f);
    // At most three bytes are read beyond the codes; block scales follow them.
    __m512i codes = _mm512_loadu_si512(data + nibble / 2);
    if (nibble % 2) codes = _mm512_srli_epi32(codes, 4);
    return {{_mm512_permutexvar_ps(codes, table)}};
  }
};

/// The bits of an e4m3 number, shifted, are a float16 of the same value times 2⁻⁸, subnormals included.
static NIBBLET_INLINE Floats load_code_scales(const uint8_t* from) {
  __m256i wide = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  return {{_mm512_cvtph_ps(_mm256_slli_epi16(wide, 7))}};
}

#include "kernels/linear/nvfp4_block.inc"

/// Elements become bf16 thirty-two at a time, in the pairs of weight.h, and pairs split into float32: normal numbers by
/// moving the exponent, subnormal ones by a table.
template <>
struct Block<Format::e4m3> {
  static constexpr size_t kBytes = panel_block_bytes(Format::e4m3);
  static constexpr bool kScaled = false;
  static constexpr bool kWorthDecodingOnce = true;
  static constexpr bool kPrefetched = true;
  /// Lane 2r + j of pairs[p]: W[r, 2p + j] in bf16.
  __m512i pairs[kBlockInputs / 2];

  NIBBLET_INLINE explicit Block(const uint8_t* data) {
    for (int quad = 0; quad < 4; quad++) {
      __m512i bytes = _mm512_loadu_si512(data + quad * 64);
      pairs[2 * quad] = to_bf16(_mm512_slli_epi16(bytes, 8));
      pairs[2 * quad + 1] = to_bf16(bytes);
    }
  }

  /// e4m3 in the high byte of each lane to bf16.
  static NIBBLET_INLINE __m512i to_bf16(__m512i high) {
    // m · 2⁻⁹ for m < 8, with the index masked by the comparison below.
    const __m512i subnormals =
        _mm512_castsi128_si512(_mm_setr_epi16(0, 0x3b00, 0x3b80, 0x3bc0, 0x3c00, 0x3c20, 0x3c40, 0x3c60));
    __m512i magnitude = _mm512_and_si512(_mm512_srli_epi16(high, 4), _mm512_set1_epi16(0x07f0));
    __m512i normal = _mm512_add_epi16(magnitude, _mm512_set1_epi16(120 << 7));
    __mmask32 subnormal = _mm512_cmplt_epu16_mask(magnitude, _mm512_set1_epi16(8 << 4));
    __m512i value =
        _mm512_mask_permutexvar_epi16(normal, subnormal, _mm512_srli_epi16(magnitude, 4), subnormals);
    return _mm512_or_si512(value, _mm512_and_si512(high, _mm512_set1_epi16(int16_t(0x8000))));
  }

  NIBBLET_INLINE Floats input(int k) const {
    __m512i pair = pairs[k / 2];
    __m512i bits =
        k % 2 ? _mm512_and_si512(pair, _mm512_set1_epi32(int32_t(0xffff0000))) : _mm512_slli_epi32(pair, 16);
    return {{_mm512_castsi512_ps(bits)}};
  }
};

#include "kernels/linear/panels.inc"
#include "kernels/linear/sparse_columns.inc"

}  // namespace
}  // namespace avx512

void matmul_panels_avx512(const WeightView& weight, int32_t matrix, const float* const* x, int32_t count,
                          int32_t first, int32_t last, float* const* y) {
  avx512::multiply_any(weight, matrix, x, count, first, last, y);
  // GCC leaves it out after functions with vector arguments, and SSE code then runs up to a hundred times slower.
  _mm256_zeroupper();
}

void matmul_columns_avx512(const WeightView& weight, int32_t matrix, const float* const* x, int32_t count,
                           int32_t first, int32_t last, float* const* y) {
  avx512::multiply_columns(weight, matrix, x, count, first, last, y);
  _mm256_zeroupper();
}

}  // namespace nibblet

#pragma GCC pop_options
#endif
