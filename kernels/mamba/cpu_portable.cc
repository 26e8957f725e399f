#ifdef __aarch64__
#include <arm_neon.h>
#endif

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

namespace nibblet {
namespace portable {
namespace {

constexpr int kWidth = 4;

#ifdef __aarch64__
NIBBLET_INLINE float32x4_t fused(float32x4_t a, float32x4_t b, float32x4_t c) { return vfmaq_f32(c, a, b); }
#else
/// Two roundings: a fused one in software would take a hundred times as long.
template <typename Vector>
NIBBLET_INLINE Vector fused(const Vector& a, const Vector& b, const Vector& c) {
  return a * b + c;
}
#endif

#include "kernels/mamba/mixer.inc"

}  // namespace
}  // namespace portable

void mamba_portable(const MambaArgs& args, int phase, int worker, int workers) {
  portable::mix(args, phase, worker, workers);
}

}  // namespace nibblet
