#include <algorithm>
#include <cmath>
#include <random>

#include "kernels/numerics/bf16.h"
#include "kernels/numerics/dot.h"
#include "kernels/numerics/e2m1.h"
#include "kernels/numerics/e4m3.h"
#include "kernels/numerics/f16.h"
#include "kernels/numerics/nvfp4.h"
#include "kernels/numerics/partition.h"
#include "test/kernels/harness.h"
#include "test/kernels/weights.h"

using namespace nibblet;
using namespace nibblet::test;

namespace {

uint32_t bits_of(float value) { return std::bit_cast<uint32_t>(value); }
float float_of(uint32_t bits) { return std::bit_cast<float>(bits); }

/// The code whose value is nearest to `magnitude`, ties to the even code; `value` ascends with the code.
template <typename Value>
int nearest_code(double magnitude, int codes, Value value) {
  magnitude = std::min(magnitude, value(codes - 1));
  int best = 0;
  for (int code = 1; code < codes; code++) {
    double old_distance = std::fabs(value(best) - magnitude), distance = std::fabs(value(code) - magnitude);
    if (distance < old_distance || (distance == old_distance && code % 2 == 0)) best = code;
  }
  return best;
}

/// Floats at, just below and just above every midpoint and value of a format, and random ones up to twice `limit`.
template <typename Value>
std::vector<float> interesting_floats(int codes, double limit, Value value) {
  std::vector<float> all = {0.0f, 0x1p-149f, 0x1p-126f, 3e38f, 1e-30f};
  for (int code = 0; code + 1 < codes; code++) {
    for (double v : {value(code), (value(code) + value(code + 1)) / 2}) {
      all.push_back(float(v));
      all.push_back(std::nextafter(float(v), INFINITY));
      all.push_back(std::nextafter(float(v), 0.0f));
    }
  }
  std::mt19937 random(1);
  for (int i = 0; i < 20000; i++)
    all.push_back(std::ldexp(float(2 * limit), -int(random() % 24)) * float(random()) * 0x1p-32f);
  return all;
}

constexpr uint16_t kRoundedInCompiler =
    bf16_from_float(1.00390625f);  // a tie: conversions are constant expressions
static_assert(kRoundedInCompiler == 0x3f80 && e4m3_from_float(1.0f) == 0x38 && e2m1_from_float(-2.5f) == 12);

}  // namespace

TEST(numerics_bf16_round_trip) {
  for (uint32_t bits = 0; bits < 0x10000; bits++) {
    float value = bf16_to_float(uint16_t(bits));
    CHECK_EQ(bits_of(value), bits << 16);
    bool is_nan = (bits & 0x7fff) > 0x7f80;
    CHECK_EQ(uint32_t(bf16_from_float(value)), is_nan ? bits | 0x40 : bits);
  }
}

TEST(numerics_bf16_nearest_even) {
  for (uint32_t high = 0; high < 0x7f80; high++) {
    uint32_t low = high << 16;
    uint32_t even = high + (high & 1);
    CHECK_EQ(uint32_t(bf16_from_float(float_of(low | 0x7fff))), high);
    CHECK_EQ(uint32_t(bf16_from_float(float_of(low | 0x8000))), even);
    CHECK_EQ(uint32_t(bf16_from_float(float_of(low | 0x8001))), high + 1);
    CHECK_EQ(uint32_t(bf16_from_float(-float_of(low | 0x8001))), (high + 1) | 0x8000);
  }
  CHECK_EQ(uint32_t(bf16_from_float(3.4e38f)), 0x7f80u);
  CHECK_EQ(uint32_t(bf16_from_float(-INFINITY)), 0xff80u);
  // A NaN whose payload lies in the lower half must not become an infinity.
  CHECK(std::isnan(bf16_to_float(bf16_from_float(float_of(0x7f800001)))));
  CHECK(std::isnan(round_to_bf16(float_of(0xffffffff))));
}

TEST(numerics_f16_to_float) {
  for (uint32_t bits = 0; bits < 0x10000; bits++) {
    float value = f16_to_float(uint16_t(bits));
    int exponent = bits >> 10 & 31, mantissa = bits & 1023;
    if (exponent == 31) {
      CHECK(mantissa ? std::isnan(value) : std::isinf(value));
    } else {
      double expected =
          exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
      CHECK_EQ(double(std::fabs(value)), expected);
    }
    CHECK_EQ(std::signbit(value), (bits & 0x8000) != 0);
  }
}

TEST(numerics_e4m3_decode) {
  for (int bits = 0; bits < 256; bits++) {
    float value = e4m3_to_float(uint8_t(bits));
    CHECK_EQ(std::signbit(value), bits >= 128);
    CHECK_EQ(e4m3_is_nan(uint8_t(bits)), std::isnan(value));
    CHECK_EQ(std::isnan(value), (bits & 127) == 127);
    if (!std::isnan(value)) CHECK_EQ(double(value), e4m3_value(uint8_t(bits)));
    CHECK_EQ(int(e4m3_from_float(value)), bits);
  }
}

TEST(numerics_e4m3_nearest_even) {
  auto value = [](int code) { return e4m3_value(uint8_t(code)); };
  for (float x : interesting_floats(127, 448, value)) {
    int expected = nearest_code(x, 127, value);
    CHECK_EQ(int(e4m3_from_float(x)), expected);
    CHECK_EQ(int(e4m3_from_float(-x)), expected | 128);
  }
  CHECK_EQ(int(e4m3_from_float(INFINITY)), 0x7e);
  CHECK_EQ(int(e4m3_from_float(-INFINITY)), 0xfe);
  CHECK_EQ(int(e4m3_from_float(NAN) & 0x7f), 0x7f);
}

TEST(numerics_e2m1) {
  for (int code = 0; code < 16; code++) {
    float value = e2m1_to_float(uint8_t(code));
    CHECK_EQ(double(value), e2m1_value(code));
    CHECK_EQ(std::signbit(value), code >= 8);
    CHECK_EQ(int(e2m1_from_float(value)), code == 8 ? 0 : code);  // minus zero counts as zero
  }
  for (float x : interesting_floats(8, 6, e2m1_value)) {
    int expected = nearest_code(x, 8, e2m1_value);
    CHECK_EQ(int(e2m1_from_float(x)), expected);
    CHECK_EQ(int(e2m1_from_float(-x)), x == 0 ? 0 : expected | 8);
  }
  CHECK_EQ(int(e2m1_from_float(INFINITY)), 7);
  CHECK_EQ(int(e2m1_from_float(-INFINITY)), 15);
  CHECK_EQ(int(e2m1_from_float(-1e-30f)), 8);
}

TEST(numerics_e2m1_times_e4m3_fits_bf16) {
  for (int code = 0; code < 16; code++) {
    for (int scale = 0; scale < 127; scale++) {
      float product = e2m1_to_float(uint8_t(code)) * e4m3_to_float(uint8_t(scale));
      CHECK_EQ(double(product), e2m1_value(code) * e4m3_value(uint8_t(scale)));
      CHECK_EQ(round_to_bf16(product), product);
    }
  }
}

TEST(numerics_nvfp4_block) {
  std::mt19937 random(2);
  for (int round = 0; round < 2000; round++) {
    float x[16], input_scale = std::ldexp(1.0f + float(random() % 1000) / 1000, -int(random() % 16));
    for (float& value : x) value = std::ldexp(float(int32_t(random())), -31 - int(random() % 8));
    uint8_t codes[16];
    uint8_t scale = quantize_nvfp4_block(x, input_scale, codes);
    float amax = 0;
    for (float value : x) amax = std::max(amax, std::fabs(value));
    // The definition in float64, then: the result may differ only where float32 rounding crosses a midpoint.
    double target = double(amax) / 6 / double(input_scale);
    double distance = std::fabs(e4m3_value(scale) - std::min(target, 448.0));
    double lower = e4m3_value(uint8_t(scale == 0 ? 0 : scale - 1)),
           upper = e4m3_value(uint8_t(std::min(scale + 1, 126)));
    CHECK(distance <= std::max(upper - e4m3_value(scale), e4m3_value(scale) - lower) / 2 + 1e-6 * target);
    for (int i = 0; i < 16; i++) {
      if (scale == 0) {
        CHECK_EQ(int(codes[i]), 0);
        continue;
      }
      double scaled = double(x[i]) / (e4m3_value(scale) * double(input_scale));
      double error = std::fabs(e2m1_value(codes[i]) - std::clamp(scaled, -6.0, 6.0));
      double magnitude = std::fabs(scaled), step = magnitude > 4 ? 2 : magnitude > 2 ? 1 : 0.5;
      CHECK(error <= step / 2 + 1e-5);
    }
  }
}

TEST(numerics_nvfp4_block_edges) {
  float x[16] = {};
  uint8_t codes[16];
  CHECK_EQ(int(quantize_nvfp4_block(x, 1.0f, codes)), 0);
  for (uint8_t code : codes) CHECK_EQ(int(code), 0);
  x[3] = 1e6f;  // beyond what input_scale was calibrated for: scale and code saturate
  x[4] = -448.0f;
  CHECK_EQ(int(quantize_nvfp4_block(x, 1.0f, codes)), 0x7e);
  CHECK_EQ(int(codes[3]), 7);
  CHECK_EQ(int(codes[4]), 10);
  x[0] = 6.0f;
  x[3] = 0.0f;
  x[4] = -5.0f;  // a tie between 4 and 6
  CHECK_EQ(int(quantize_nvfp4_block(x, 1.0f, codes)), 0x38);
  CHECK_EQ(int(codes[0]), 7);
  CHECK_EQ(int(codes[4]), 14);
  for (int position : {0, 7, 15}) {
    float y[16] = {1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5, 6, 7, 8};
    y[position] = NAN;
    CHECK(e4m3_is_nan(quantize_nvfp4_block(y, 1.0f, codes)));
  }
}

TEST(numerics_ordered_sum) {
  std::mt19937 random(3);
  for (int n : {0, 1, 15, 16, 17, 33, 100, 2688}) {
    std::vector<float> terms(size_t(n), 0.0f);
    for (float& term : terms) term = float(int32_t(random()));
    float partial[16] = {};
    for (int k = 0; k < n; k++) partial[k % 16] += terms[size_t(k)];
    float pairs[8], fours[4];
    for (int i = 0; i < 8; i++) pairs[i] = partial[i] + partial[i + 8];
    for (int i = 0; i < 4; i++) fours[i] = pairs[i] + pairs[i + 4];
    float expected = (fours[0] + fours[2]) + (fours[1] + fours[3]);
    CHECK_EQ(bits_of(ordered_sum(n, [&](int32_t k) { return terms[size_t(k)]; })), bits_of(expected));
  }
  float a[] = {1, 2, 3}, b[] = {4, 5, 6};
  CHECK_EQ(dot(a, b, 3), 32.0f);
}

TEST(numerics_partition) {
  for (int workers : {1, 2, 3, 7}) {
    for (int total : {0, 1, 2, 6, 7, 100}) {
      int64_t next = 0;
      for (int worker = 0; worker < workers; worker++) {
        Range range = partition(total, worker, workers);
        CHECK_EQ(range.first, next);
        CHECK(range.last - range.first <= total / workers + 1);
        next = range.last;
      }
      CHECK_EQ(next, total);
    }
  }
}

TEST(numerics_units_of_a_part) {
  // Three items, of 64 units of cost 1, 5 of cost 7 and 63 of cost 1: each unit has one worker, and no worker more than a unit
  // above its share.
  constexpr int64_t kUnits[] = {64, 5, 63}, kCosts[] = {1, 7, 1};
  for (const int workers : {1, 2, 3, 8, 200}) {
    int64_t next[3] = {};
    for (int worker = 0; worker < workers; worker++) {
      const Range part = partition(162, worker, workers);
      int64_t start = 0, cost = 0;
      for (int i = 0; i < 3; i++) {
        const Range mine = units_of(part, start, kCosts[i], kUnits[i]);
        if (mine.first < mine.last) {
          CHECK_EQ(mine.first, next[i]);
          next[i] = mine.last;
          cost += (mine.last - mine.first) * kCosts[i];
        }
        start += kUnits[i] * kCosts[i];
      }
      CHECK(cost <= part.last - part.first + 7);
    }
    for (int i = 0; i < 3; i++) CHECK_EQ(next[i], kUnits[i]);
  }
}
