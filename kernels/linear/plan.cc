#include "kernels/linear/matmul.h"
#include "kernels/linear/variants.h"
#include "kernels/simd/cpu.h"

namespace nibblet {

Matmul plan_matmul(const WeightView& weight) {
  if (weight.layout == Layout::rows) return matmul_reference;
#ifdef __x86_64__
  if (selected_cpu_variant() == CpuVariant::avx512) return matmul_panels_avx512;
  if (selected_cpu_variant() == CpuVariant::avx2) return matmul_panels_avx2;
#endif
  return matmul_panels;
}

}  // namespace nibblet
