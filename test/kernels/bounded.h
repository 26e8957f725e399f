#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "kernels/numerics/bf16.h"
#include "kernels/numerics/dtype.h"

namespace nibblet::test {

/// Unit roundoff of float32.
constexpr double kUnit = 0x1p-24;

/// A float64 value with a bound of the error of a float32 program that computes the same formula: every operation passes
/// its operands' errors on (first order) and adds its own rounding. Oracles written with it state their own tolerance.
struct Bounded {
  double value = 0;
  double error = 0;
  Bounded() = default;
  Bounded(double v) : value(v) {}
  Bounded(double v, double e) : value(v), error(e) {}
};

inline Bounded rounded(double value, double error, double units = 1) {
  return {value, error + units * kUnit * std::fabs(value)};
}
inline Bounded operator+(Bounded a, Bounded b) { return rounded(a.value + b.value, a.error + b.error); }
inline Bounded operator-(Bounded a, Bounded b) { return rounded(a.value - b.value, a.error + b.error); }
inline Bounded operator*(Bounded a, Bounded b) {
  return rounded(a.value * b.value, std::fabs(a.value) * b.error + std::fabs(b.value) * a.error);
}
inline Bounded operator/(Bounded a, Bounded b) {
  const double q = a.value / b.value;
  return rounded(q, (a.error + std::fabs(q) * b.error) / std::fabs(b.value));
}
/// Library functions are allowed two units of their own.
inline Bounded exp(Bounded a) { return rounded(std::exp(a.value), std::exp(a.value) * a.error, 2); }
inline Bounded log1p(Bounded a) { return rounded(std::log1p(a.value), a.error / (1 + a.value), 2); }
inline Bounded sqrt(Bounded a) { return rounded(std::sqrt(a.value), a.error / (2 * std::sqrt(a.value))); }
inline Bounded sigmoid(Bounded a) { return Bounded(1) / (Bounded(1) + exp(Bounded(-a.value, a.error))); }
inline Bounded silu(Bounded a) { return a / (Bounded(1) + exp(Bounded(-a.value, a.error))); }

/// Sum of n terms in 16 partial sums and a tree, or any order that rounds no term more often.
class BoundedSum {
 public:
  void add(Bounded term) {
    value_ += term.value;
    magnitude_ += std::fabs(term.value);
    error_ += term.error;
    ++terms_;
  }
  /// @param longest  additions that one term goes through; 0: those of the project's order
  Bounded total(int64_t longest = 0) const {
    if (longest == 0) longest = (terms_ + 15) / 16 + 4;
    return {value_, error_ + double(longest) * kUnit * magnitude_};
  }

 private:
  double value_ = 0;
  double magnitude_ = 0;
  double error_ = 0;
  int64_t terms_ = 0;
};

/// `value` rounded to bf16 inside the program. Where its error leaves two choices the bound covers both.
inline Bounded to_bf16(Bounded value) {
  const double low = round_to_bf16(float(value.value - value.error));
  const double high = round_to_bf16(float(value.value + value.error));
  const double middle = round_to_bf16(float(value.value));
  return {middle, std::max(high - middle, middle - low)};
}

/// `value` stored as `type`: half an ulp of the type on top.
inline Bounded stored(Bounded value, DType type) {
  if (type != DType::bf16) return value;
  const double size = std::fabs(value.value) + value.error;
  return {value.value, value.error + (size > 0 ? std::ldexp(1.0, std::ilogb(size) - 8) : 0)};
}

}  // namespace nibblet::test
