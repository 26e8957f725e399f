#pragma once

#include <cmath>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "kernels/simd/cpu.h"

namespace nibblet::test {

/// Values in [-1, 1).
inline std::vector<float> random_floats(size_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<float> values(count);
  for (float& value : values) value = std::ldexp(float(int32_t(random())), -31);
  return values;
}

/// Runs `body` under each CPU variant of this machine, then restores the selection.
template <typename Body>
void for_each_cpu_variant(Body body) {
  std::string before = cpu_variant();
  for (const char* name : {"portable", "avx2", "avx512", "avx512vnni"}) {
    if (select_cpu_variant(name)) body();
  }
  select_cpu_variant(before.c_str());
}

}  // namespace nibblet::test
