#pragma once

#include <cstdint>

#include "kernels/numerics/host_device.h"

namespace nibblet {

/// Sum over k in [0, n) of term(k) in float32, in the order that defines this project's references: term k goes to
/// partial sum k mod 16, each in ascending k, then sums i and i + 8 are added, then i and i + 4, + 2, + 1. The order
/// depends on n alone. (Sixteen partial sums vectorise on every machine and keep the rounding error near √(n / 16).)
template <typename Term>
NIBBLET_HD constexpr float ordered_sum(int32_t n, Term term) {
  float partial[16] = {};
  int32_t k = 0;
  for (; k + 16 <= n; k += 16) {
    for (int32_t i = 0; i < 16; i++) partial[i] += term(k + i);
  }
  for (int32_t i = 0; k + i < n; i++) partial[i] += term(k + i);
  for (int32_t width = 8; width > 0; width /= 2) {
    for (int32_t i = 0; i < width; i++) partial[i] += partial[i + width];
  }
  return partial[0];
}

/// Σ a[k] · b[k], each product rounded to float32, in the order of ordered_sum.
NIBBLET_HD constexpr float dot(const float* a, const float* b, int32_t n) {
  return ordered_sum(n, [=](int32_t k) { return a[k] * b[k]; });
}

}  // namespace nibblet
