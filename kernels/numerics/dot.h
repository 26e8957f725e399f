#pragma once

#include <cstdint>

#include "kernels/numerics/host_device.h"

namespace nibblet {

/// The float32 sum of a sequence of terms, in the order that defines this project's references: term k goes to partial
/// sum k mod 16, each in ascending k, then sums i and i + 8 are added, then i and i + 4, + 2, + 1. The order depends on
/// the number of terms alone. (Sixteen partial sums vectorise on every machine and keep the rounding error near √(n / 16).)
struct OrderedSum {
  float partial[16];

  /// Adds term(0) to term(n - 1), behind what is there: a multiple of 16 terms.
  template <typename Term>
  NIBBLET_HD constexpr void add(int32_t n, Term term) {
    int32_t k = 0;
    for (; k + 16 <= n; k += 16) {
      for (int32_t i = 0; i < 16; i++) partial[i] += term(k + i);
    }
    for (int32_t i = 0; k + i < n; i++) partial[i] += term(k + i);
  }

  /// Ends the sum.
  NIBBLET_HD constexpr float total() {
    for (int32_t width = 8; width > 0; width /= 2) {
      for (int32_t i = 0; i < width; i++) partial[i] += partial[i + width];
    }
    return partial[0];
  }
};

/// The OrderedSum of term(0) to term(n - 1).
template <typename Term>
NIBBLET_HD constexpr float ordered_sum(int32_t n, Term term) {
  OrderedSum sum = {};
  sum.add(n, term);
  return sum.total();
}

/// Σ a[k] · b[k], each product rounded to float32, in the order of ordered_sum.
NIBBLET_HD constexpr float dot(const float* a, const float* b, int32_t n) {
  return ordered_sum(n, [=](int32_t k) { return a[k] * b[k]; });
}

}  // namespace nibblet
