#include "kernels/mamba/variants.h"
#include "kernels/simd/cpu.h"

namespace nibblet {

void mamba(const MambaArgs& args, int phase, int worker, int workers) {
  if (args.kernel > kMaxVectorKernel) return mamba_reference(args, phase, worker, workers);
#ifdef __x86_64__
  if (selected_cpu_variant() >= CpuVariant::avx512) return mamba_avx512(args, phase, worker, workers);
  if (selected_cpu_variant() >= CpuVariant::avx2) return mamba_avx2(args, phase, worker, workers);
#endif
  mamba_portable(args, phase, worker, workers);
}

void mamba_by_groups(const MambaArgs& args, int, int worker, int workers) {
  mamba(args, kMambaByGroups, worker, workers);
}

bool mamba_groups_stand_alone(const MambaArgs& args) {
  return args.kernel <= kMaxVectorKernel && args.heads / args.groups * args.head_dim % 16 == 0 &&
         args.state % 16 == 0;
}

}  // namespace nibblet
