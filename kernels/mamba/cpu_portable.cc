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

/// Two roundings: a fused one in software would take a hundred times as long.
template <typename Vector>
NIBBLET_INLINE Vector fused(const Vector& a, const Vector& b, const Vector& c) {
  return a * b + c;
}

#include "kernels/mamba/mixer.inc"

}  // namespace
}  // namespace portable

void mamba_portable(const MambaArgs& args, int phase, int worker, int workers) {
  portable::mix(args, phase, worker, workers);
}

}  // namespace nibblet
