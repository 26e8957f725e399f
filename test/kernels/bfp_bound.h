#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/linear/bfp.h"

/// What block floating point may take from inputs, by the definition in kernels/linear/bfp.h and in float64.
namespace nibblet::test {

inline double bfp_scale(double largest) {
  return std::ldexp(1.0, largest == 0 ? -126 : std::max(std::ilogb(largest) - 13, -126));
}

/// The most that inputs of a block of 16 (zeros beyond `count`) are off.
inline double bfp_error(const float* x, int32_t count) {
  double largest = 0;
  for (int32_t i = 0; i < std::min(count, kBlockInputs); i++)
    largest = std::max(largest, std::fabs(double(x[i])));
  return bfp_scale(largest) / 2;
}

/// Input i of a block as products see it.
inline float bfp_at(const BfpBlock& block, int32_t i) {
  return bfp_input(block, int(std::find(kBfpOrder, kBfpOrder + kBlockInputs, i) - kBfpOrder));
}

}  // namespace nibblet::test
