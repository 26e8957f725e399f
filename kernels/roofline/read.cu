#include "kernels/cuda/device.h"
#include "kernels/roofline/cuda.h"

namespace nibblet {
namespace {

constexpr int kThreads = 1024;
/// Where a multiprocessor holds fewer threads, the second follows the first.
constexpr int kBlocksPerMultiprocessor = 2;
/// Loads of a thread that are under way at once.
constexpr int kAtOnce = 4;

__device__ uint64_t sum_of(uint4 four) {
  return (uint64_t{four.y} << 32 | four.x) + (uint64_t{four.w} << 32 | four.z);
}

/// Neighbouring threads take neighbouring 16 bytes, and the whole grid the 16 bytes after those.
__global__ void __launch_bounds__(kThreads) read_kernel(const uint4* data, size_t count, uint64_t* sums) {
  grid_dependency_launch();
  grid_dependency_wait();
  __shared__ uint64_t warp_sums[kThreads / 32];
  const uint64_t policy = evict_first_policy();
  const size_t stride = size_t(gridDim.x) * kThreads;
  size_t i = size_t(blockIdx.x) * kThreads + threadIdx.x;
  uint64_t sum = 0;
  for (; i + (kAtOnce - 1) * stride < count; i += kAtOnce * stride) {
    uint4 fours[kAtOnce];
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) fours[j] = load_stream(data + i + size_t(j) * stride, policy);
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) sum += sum_of(fours[j]);
  }
  for (; i < count; i += stride) sum += sum_of(load_stream(data + i, policy));

  for (int lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
  if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x != 0) return;
  uint64_t total = 0;
  for (uint64_t part : warp_sums) total += part;
  sums[blockIdx.x] = total;
}

}  // namespace

int read_roofline_sums(const CudaTarget& target) { return target.multiprocessors * kBlocksPerMultiprocessor; }

cudaError_t read_roofline_cuda(const void* data, size_t bytes, uint64_t* sums, const CudaTarget& target) {
  if (bytes % 16 != 0 || reinterpret_cast<uintptr_t>(data) % 16 != 0) return cudaErrorInvalidValue;
  return launch(target, {dim3(unsigned(read_roofline_sums(target))), dim3(kThreads)}, read_kernel, data,
                bytes / 16, sums);
}

}  // namespace nibblet
