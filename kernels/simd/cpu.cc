#include "kernels/simd/cpu.h"

#include <atomic>
#include <cstring>
#include <iterator>

namespace nibblet {
namespace {

constexpr const char* kNames[] = {"portable", "avx2", "avx512", "avx512vnni"};

bool machine_has(CpuVariant variant) {
#if defined(__x86_64__) && defined(__GNUC__)
  __builtin_cpu_init();
  bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (variant == CpuVariant::avx2) return avx2;
  bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (variant == CpuVariant::avx512) return avx512;
  if (variant == CpuVariant::avx512vnni) return avx512 && __builtin_cpu_supports("avx512vnni");
#endif
  return variant == CpuVariant::portable;
}

CpuVariant best() {
  int variant = int(std::size(kNames)) - 1;
  while (!machine_has(CpuVariant(variant))) variant--;
  return CpuVariant(variant);
}

std::atomic<CpuVariant>& selection() {
  static std::atomic<CpuVariant> selected = best();
  return selected;
}

}  // namespace

bool select_cpu_variant(const char* name) {
  for (int i = 0; i < int(std::size(kNames)); i++) {
    if (std::strcmp(name, kNames[i]) != 0) continue;
    if (!machine_has(CpuVariant(i))) return false;
    selection() = CpuVariant(i);
    return true;
  }
  return false;
}

CpuVariant selected_cpu_variant() { return selection(); }

const char* cpu_variant() { return kNames[int(selected_cpu_variant())]; }

}  // namespace nibblet
