#ifdef __x86_64__

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kernels/linear/variants.h"
#include "kernels/pack/layout.h"

#define NIBBLET_INLINE inline __attribute__((always_inline))

// GCC 12 takes the undefined pass-through operands inside its own AVX-512 intrinsics for a mistake (bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

// After every include: what is defined above stays compiled for any machine.
#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")

namespace nibblet {
namespace avx512 {
namespace {

constexpr int kWidth = 16;
constexpr int kTile = 16;

#include "kernels/simd/lanes.inc"

NIBBLET_INLINE Floats madd(Floats a, Floats b, Floats c) {
  c.v[0] = _mm512_fmadd_ps(a.v[0], b.v[0], c.v[0]);
  return c;
}

NIBBLET_INLINE Floats madd(Floats a, float b, Floats c) {
  c.v[0] = _mm512_fmadd_ps(a.v[0], _mm512_set1_ps(b), c.v[0]);
  return c;
}

#include "kernels/linear/blocks.inc"

/// A code is the index of a 16-entry float table in a register: VPERMPS looks at the low four bits of each lane only,
/// so a nibble needs no mask. The even nibbles (bytes) come down by loading from one, two or three bytes further on,
/// which leaves one shift for every second nibble: loads are free here, the ports of shifts and shuffles are not.
template <>
struct Block<Format::nvfp4> {
  static constexpr size_t kBytes = panel_block_bytes(Format::nvfp4);
  static constexpr bool kScaled = true;
  static constexpr bool kWorthDecodingOnce = false;
  const uint8_t* data;

  NIBBLET_INLINE explicit Block(const uint8_t* data) : data(data) {}

  NIBBLET_INLINE Floats input(int k) const {
    // Times 2⁸, which the scales lack.
    const __m512 table =
        _mm512_setr_ps(0.0f, 128.0f, 256.0f, 384.0f, 512.0f, 768.0f, 1024.0f, 1536.0f,  //
                       -0.0f, -128.0f, -256.0f, -384.0f, -512.0f, -768.0f, -1024.0f, -1536.0f);
    int nibble = k % 2 * 4 + k % 8 / 2;
    // At most three bytes of the block scales are read beyond the codes.
    __m512i codes = _mm512_loadu_si512(data + k / 8 * 64 + nibble / 2);
    if (nibble % 2) codes = _mm512_srli_epi32(codes, 4);
    return {{_mm512_permutexvar_ps(codes, table)}};
  }

  /// The bits of an e4m3 number, shifted, are a float16 of the same value times 2⁻⁸, subnormals included.
  NIBBLET_INLINE Floats scale() const {
    __m256i wide =
        _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(data + kPanelScales)));
    return {{_mm512_cvtph_ps(_mm256_slli_epi16(wide, 7))}};
  }
};

#include "kernels/linear/panels.inc"

}  // namespace
}  // namespace avx512

void matmul_panels_avx512(const WeightView& weight, int32_t matrix, const float* const* x, int32_t count,
                          int32_t first, int32_t last, float* const* y) {
  avx512::multiply_any(weight, matrix, x, count, first, last, y);
  // GCC leaves it out after functions with vector arguments, and SSE code then runs up to a hundred times slower.
  _mm256_zeroupper();
}

}  // namespace nibblet

#pragma GCC pop_options
#endif
