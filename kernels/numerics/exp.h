#pragma once

#include <bit>
#include <cstdint>

namespace nibblet {

/// e to the x within 1.1 ulp for every float32, without branches or library calls, so that a loop of it vectorises on any
/// machine: x = n·ln 2 + r with |r| ≤ ln 2 / 2, a polynomial for e to the r (Taylor to degree 7), times 2 to the n in two
/// factors that reach subnormal results. Infinities and NaN as std::exp. Always inlined: a copy that one variant compiled
/// for its machine must not be the one that another calls.
[[gnu::always_inline]] inline float vector_exp(float x) {
  // e to the -104 rounds to 0, e to the 89 to infinity. NaN passes both comparisons.
  x = x < -104.0f ? -104.0f : x;
  x = x > 89.0f ? 89.0f : x;
  // Adding 1.5 · 2²³ leaves the nearest integer in the low bits.
  const float shifted = x * 0x1.715476p+0f + 0x1.8p23f;
  const float n = shifted - 0x1.8p23f;
  const int32_t power = std::bit_cast<int32_t>(shifted) - std::bit_cast<int32_t>(0x1.8p23f);
  // ln 2 in two parts: the first has so few bits that n times it is exact.
  const float r = (x - n * 0x1.62e4p-1f) - n * 0x1.7f7d1cp-20f;
  float p = 0x1.a01a02p-13f;
  p = p * r + 0x1.6c16c2p-10f;
  p = p * r + 0x1.111112p-7f;
  p = p * r + 0x1.555556p-5f;
  p = p * r + 0x1.555556p-3f;
  p = p * r + 0.5f;
  p = p * (r * r) + r;
  p = p + 1.0f;
  const int32_t half = power >> 1;
  const uint32_t first = uint32_t(half + 127) << 23;
  const uint32_t second = uint32_t(power - half + 127) << 23;
  return p * std::bit_cast<float>(first) * std::bit_cast<float>(second);
}

}  // namespace nibblet
