#include "kernels/numerics/exp.h"

#include <bit>
#include <cmath>
#include <limits>

#include "test/kernels/harness.h"

namespace nibblet::test {

TEST(exp_accuracy) {
  typedef float Floats __attribute__((vector_size(16)));
  typedef int32_t Ints __attribute__((vector_size(16)));
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  double worst = 0;
  // A prime stride through every exponent, NaN and infinity included.
  for (uint64_t bits = 0; bits < uint64_t{1} << 32; bits += 4099) {
    const float x = std::bit_cast<float>(uint32_t(bits));
    const float y = vector_exp(x);
    Floats lanes = {0, x, 1, x};
    exp_lanes<Floats, Ints>(lanes);
    CHECK_EQ(std::bit_cast<uint32_t>(float(lanes[3])), std::bit_cast<uint32_t>(y));
    const double exact = std::exp(double(x));
    if (std::isnan(x)) {
      CHECK(std::isnan(y));
    } else if (exact >= 0x1.ffffffp127) {
      CHECK_EQ(y, kInfinity);
    } else {
      const float below = std::nextafter(float(exact), 0.0f);
      const double ulp = std::fmax(std::fabs(double(float(exact)) - double(below)), 0x1p-149);
      worst = std::fmax(worst, std::fabs(y - exact) / ulp);
    }
  }
  CHECK(worst < 1.1);
  CHECK(worst > 0.5);
  CHECK_EQ(vector_exp(0), 1.0f);
  CHECK_EQ(vector_exp(-kInfinity), 0.0f);
  CHECK_EQ(vector_exp(kInfinity), kInfinity);
}

}  // namespace nibblet::test
