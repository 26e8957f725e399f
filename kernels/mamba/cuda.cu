#include "kernels/mamba/cuda.h"
#include "kernels/mamba/launches.h"
#include "kernels/mamba/mixer.cuh"

namespace nibblet {
namespace {

/// Most tokens of a step that one launch computes.
constexpr int32_t kMixTokens = 64;

bool is_aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

}  // namespace

bool mamba_cuda_is_fast(const MambaArgs& args) {
  return args.type == DType::bf16 && args.kernel == mamba_device::kFastTaps &&
         args.state == mamba_device::kFastState && args.head_dim % 4 == 0 && is_aligned(args.conv_weight) &&
         is_aligned(args.ssm_state);
}

cudaError_t mamba_cuda(const MambaArgs& args, int32_t capacity, void* workspace, void* counters,
                       const CudaTarget& target) {
  if (args.kernel < 1 || args.kernel > mamba_device::kMaxTaps) return cudaErrorInvalidValue;
  if (capacity > kMixTokens) return mamba_cuda_phases(args, capacity, workspace, target);
  return mamba_cuda_mix(args, capacity, static_cast<float*>(workspace), static_cast<uint32_t*>(counters),
                        target);
}

CudaScratch mamba_cuda_scratch(const MambaArgs& args, int32_t capacity, const CudaTarget&) {
  if (capacity > kMixTokens) return {mamba_cuda_phases_bytes(args, capacity), 0};
  return {size_t(capacity) * MambaShape(args).inner * sizeof(float),
          size_t(capacity) * args.groups * sizeof(uint32_t)};
}

}  // namespace nibblet
