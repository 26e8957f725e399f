#include "kernels/linear/matmul.h"
#include "kernels/linear/variants.h"
#include "kernels/simd/cpu.h"

namespace nibblet {

Matmul plan_matmul(const WeightView& weight) {
  if (weight.layout == Layout::rows) return matmul_reference;
  const bool columns = weight.layout == Layout::columns;
#ifdef __x86_64__
  switch (selected_cpu_variant()) {
    case CpuVariant::avx512vnni:
    case CpuVariant::avx512:
      return columns ? matmul_columns_avx512 : matmul_panels_avx512;
    case CpuVariant::avx2:
      return columns ? matmul_columns_avx2 : matmul_panels_avx2;
    case CpuVariant::portable:
      break;
  }
#endif
  return columns ? matmul_columns : matmul_panels;
}

bool prefers_compact_panels() { return selected_cpu_variant() >= CpuVariant::avx512; }

const BfpKernels* plan_bfp([[maybe_unused]] const WeightView& weight) {
#ifdef __x86_64__
  static constexpr BfpKernels kVnni = {bfp_from_floats_avx512vnni, matmul_bfp_avx512vnni};
  const bool fits = weight.format == Format::nvfp4 && weight.layout == Layout::panels;
  if (fits && selected_cpu_variant() >= CpuVariant::avx512vnni) return &kVnni;
#endif
  return nullptr;
}

}  // namespace nibblet
