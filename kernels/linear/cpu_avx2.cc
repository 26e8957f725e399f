#ifdef __x86_64__

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kernels/linear/variants.h"
#include "kernels/pack/compact_panels.h"

#define NIBBLET_INLINE inline __attribute__((always_inline))

// After every include: what is defined above stays compiled for any machine.
#pragma GCC push_options
#pragma GCC target("avx2,fma")

namespace nibblet {
namespace avx2 {
namespace {

constexpr int kWidth = 8;
constexpr int kTile = 4;
constexpr int kPasses = 2;
constexpr bool kCodesWorthDecodingOnce = true;

#include "kernels/simd/lanes.inc"

NIBBLET_INLINE ByteVector twice_e2m1(ByteVector codes) {
  const __m256i table = _mm256_setr_epi8(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12,  //
                                         0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12);
  return reinterpret_cast<ByteVector>(_mm256_shuffle_epi8(table, reinterpret_cast<__m256i>(codes)));
}

NIBBLET_INLINE Floats madd(Floats a, Floats b, Floats c) {
  for (int i = 0; i < kVectors; i++) c.v[i] = _mm256_fmadd_ps(a.v[i], b.v[i], c.v[i]);
  return c;
}

NIBBLET_INLINE Floats madd(Floats a, float b, Floats c) {
  __m256 value = _mm256_set1_ps(b);
  for (int i = 0; i < kVectors; i++) c.v[i] = _mm256_fmadd_ps(a.v[i], value, c.v[i]);
  return c;
}

NIBBLET_INLINE uint32_t nonzero(Floats a) {
  uint32_t mask = 0;
  for (int i = 0; i < kVectors; i++) {
    mask |= uint32_t(_mm256_movemask_ps(_mm256_cmp_ps(a.v[i], _mm256_setzero_ps(), _CMP_NEQ_UQ))) << i * 8;
  }
  return mask;
}

#include "kernels/linear/blocks.inc"
#include "kernels/linear/e4m3_words.inc"
#include "kernels/linear/nvfp4_bytes.inc"
#include "kernels/linear/panels.inc"
#include "kernels/linear/sparse_columns.inc"

}  // namespace
}  // namespace avx2

void matmul_panels_avx2(const WeightView& weight, int32_t matrix, const float* const* x, int32_t count,
                        int32_t first, int32_t last, float* const* y) {
  avx2::multiply_any(weight, matrix, x, count, first, last, y);
  // GCC leaves it out after functions with vector arguments, and SSE code then runs up to a hundred times slower.
  _mm256_zeroupper();
}

void matmul_columns_avx2(const WeightView& weight, int32_t matrix, const float* const* x, int32_t count,
                         int32_t first, int32_t last, float* const* y) {
  avx2::multiply_columns(weight, matrix, x, count, first, last, y);
  _mm256_zeroupper();
}

}  // namespace nibblet

#pragma GCC pop_options
#endif
