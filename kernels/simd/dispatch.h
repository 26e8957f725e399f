#pragma once

#include "kernels/simd/cpu.h"

/// Marks a lambda, or a function that it calls, for run_vectorized.
#define NIBBLET_VECTORIZED __attribute__((always_inline))

namespace nibblet {

#ifdef __x86_64__
template <typename Body>
[[gnu::target("avx2")]] void run_avx2(const Body& body) {
  body();
}
template <typename Body>
[[gnu::target("avx512f,avx512dq,avx512bw,avx512vl,prefer-vector-width=512")]] void run_avx512(
    const Body& body) {
  body();
}
#endif

/// Runs plain loops compiled for the vectors of the variant in use: `body`, and what it calls to loop, must be inlined into
/// the function that is compiled for those, hence NIBBLET_VECTORIZED. Every variant gives the same bits: no compiler contracts or
/// reorders here.
template <typename Body>
void run_vectorized(const Body& body) {
#ifdef __x86_64__
  if (selected_cpu_variant() >= CpuVariant::avx512) return run_avx512(body);
  if (selected_cpu_variant() >= CpuVariant::avx2) return run_avx2(body);
#endif
  body();
}

}  // namespace nibblet
