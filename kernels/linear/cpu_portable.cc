#ifdef __aarch64__
#include <arm_neon.h>
#endif

#include <cstddef>
#include <cstdint>

#include "kernels/linear/matmul.h"
#include "kernels/pack/compact_panels.h"

#define NIBBLET_INLINE inline __attribute__((always_inline))

namespace nibblet {
namespace portable {
namespace {

constexpr int kWidth = 4;
/// Tokens whose sums, with those of a block and a weight vector, fill the registers: sixteen of SSE2, thirty-two of NEON.
#ifdef __aarch64__
constexpr int kTile = 3;
#else
constexpr int kTile = 2;
#endif
constexpr int kPasses = 2;
constexpr bool kCodesWorthDecodingOnce = true;

#include "kernels/simd/lanes.inc"

#ifdef __aarch64__
NIBBLET_INLINE ByteVector twice_e2m1(ByteVector codes) {
  constexpr int8_t kTable[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
  return reinterpret_cast<ByteVector>(vqtbl1q_s8(vld1q_s8(kTable), reinterpret_cast<uint8x16_t>(codes)));
}

NIBBLET_INLINE Floats madd(Floats a, float b, Floats c) {
  for (int i = 0; i < kVectors; i++) c.v[i] = vfmaq_n_f32(c.v[i], a.v[i], b);
  return c;
}
NIBBLET_INLINE Floats madd(Floats a, Floats b, Floats c) {
  for (int i = 0; i < kVectors; i++) c.v[i] = vfmaq_f32(c.v[i], a.v[i], b.v[i]);
  return c;
}
#else
/// With magnitude index m: 2 · value = m + max(m - 4, 0) + 2 · max(m - 6, 0), that is 0 1 2 3 4 6 8 12.
NIBBLET_INLINE ByteVector twice_e2m1(ByteVector codes) {
  ByteVector m = codes & 7;
  ByteVector above4 = (m > 4 ? m : ByteVector{} + 4) - 4;
  ByteVector above6 = (m > 6 ? m : ByteVector{} + 6) - 6;
  ByteVector magnitude = m + above4 + above6 + above6;
  ByteVector negative = reinterpret_cast<ByteVector>(codes > 7);
  return (magnitude ^ negative) - negative;
}

NIBBLET_INLINE Floats madd(Floats a, float b, Floats c) { return a * b + c; }
NIBBLET_INLINE Floats madd(Floats a, Floats b, Floats c) { return a * b + c; }
#endif

NIBBLET_INLINE uint32_t nonzero(Floats a) {
  uint32_t mask = 0;
  for (int i = 0; i < 16; i++) mask |= uint32_t(a.v[i / kWidth][i % kWidth] != 0.0f) << i;
  return mask;
}

#include "kernels/linear/blocks.inc"
#include "kernels/linear/e4m3_words.inc"
#include "kernels/linear/nvfp4_bytes.inc"
#include "kernels/linear/panels.inc"
#include "kernels/linear/sparse_columns.inc"

}  // namespace
}  // namespace portable

void matmul_panels(const WeightView& weight, int32_t matrix, const float* const* x, int32_t count,
                   int32_t first, int32_t last, float* const* y) {
  portable::multiply_any(weight, matrix, x, count, first, last, y);
}

void matmul_columns(const WeightView& weight, int32_t matrix, const float* const* x, int32_t count,
                    int32_t first, int32_t last, float* const* y) {
  portable::multiply_columns(weight, matrix, x, count, first, last, y);
}

}  // namespace nibblet
