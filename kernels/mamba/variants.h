#pragma once

#include "kernels/mamba/mamba.h"

/// The instantiations of mixer.inc; plan.cc chooses. Those that fuse multiplications with additions give the same bits.
namespace nibblet {

/// A phase beside the three: mamba_by_groups.
constexpr int kMambaByGroups = 3;

void mamba_portable(const MambaArgs& args, int phase, int worker, int workers);
void mamba_avx2(const MambaArgs& args, int phase, int worker, int workers);
void mamba_avx512(const MambaArgs& args, int phase, int worker, int workers);

/// The longest convolution that the variants keep in registers and on the stack.
constexpr int32_t kMaxVectorKernel = 16;

}  // namespace nibblet
