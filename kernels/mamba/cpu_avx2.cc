#ifdef __x86_64__

#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "kernels/mamba/shape.h"
#include "kernels/mamba/variants.h"
#include "kernels/numerics/element.h"
#include "kernels/numerics/exp.h"
#include "kernels/numerics/partition.h"

#define NIBBLET_INLINE inline __attribute__((always_inline))

// After every include: what is defined above stays compiled for any machine.
#pragma GCC push_options
#pragma GCC target("avx2,fma")

namespace nibblet {
namespace avx2 {
namespace {

constexpr int kWidth = 8;

NIBBLET_INLINE __m256 fused(__m256 a, __m256 b, __m256 c) { return _mm256_fmadd_ps(a, b, c); }

#include "kernels/mamba/mixer.inc"

}  // namespace
}  // namespace avx2

void mamba_avx2(const MambaArgs& args, int phase, int worker, int workers) {
  avx2::mix(args, phase, worker, workers);
  // GCC leaves it out after functions with vector arguments, and SSE code then runs up to a hundred times slower.
  _mm256_zeroupper();
}

}  // namespace nibblet

#pragma GCC pop_options
#endif
