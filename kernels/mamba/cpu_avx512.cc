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
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")

namespace nibblet {
namespace avx512 {
namespace {

constexpr int kWidth = 16;
// One vector is a block, and VPERMT2PS picks any lanes of two.
#define NIBBLET_MIXER_SHUFFLES

NIBBLET_INLINE __m512 fused(__m512 a, __m512 b, __m512 c) { return _mm512_fmadd_ps(a, b, c); }

#include "kernels/mamba/mixer.inc"

}  // namespace
}  // namespace avx512

void mamba_avx512(const MambaArgs& args, int phase, int worker, int workers) {
  avx512::mix(args, phase, worker, workers);
  // GCC leaves it out after functions with vector arguments, and SSE code then runs up to a hundred times slower.
  _mm256_zeroupper();
}

}  // namespace nibblet

#pragma GCC pop_options
#endif
