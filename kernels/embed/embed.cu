#include <algorithm>

#include "kernels/cuda/device.h"
#include "kernels/embed/cuda.h"
#include "kernels/numerics/bf16.h"

namespace nibblet {
namespace {

constexpr int kMostThreads = 512;

/// The id of a flat token: its own, or the slot's last sampled one. A row that is not live takes id 0, since what an idle
/// slot holds was never checked.
__device__ int32_t id_of(const EmbedArgs& args, const Step& step, int32_t token) {
  // Both at once: in decoding all that follows waits for a chain of loads.
  const int32_t id = step.ids[token], sequence = step.sequence_of[token];
  if (id >= 0) return id;
  const Slot& slot = args.slots[step.sequences[sequence].slot];
  const int32_t active = slot.active, sampled = slot.token;
  return active != 0 ? sampled : 0;
}

__device__ float2 widen(uint32_t pair) {
  return {bf16_to_float(uint16_t(pair)), bf16_to_float(uint16_t(pair >> 16))};
}

/// A token is the work of a block. With `vectors` the rows of the table are 16-byte aligned.
template <bool bf16, bool vectors>
__global__ void embed_kernel(EmbedArgs args) {
  grid_dependency_launch();
  grid_dependency_wait();
  const int32_t token = int32_t(blockIdx.x);
  const Step step = *args.step;
  if (token >= step.tokens) return;
  const int64_t row = int64_t(id_of(args, step, token)) * args.hidden;
  float* y = args.y + int64_t(token) * args.hidden;
  const int first = int(threadIdx.x), threads = int(blockDim.x);
  if constexpr (vectors && bf16) {
    const uint4* from = reinterpret_cast<const uint4*>(static_cast<const uint16_t*>(args.table) + row);
    float4* to = reinterpret_cast<float4*>(y);
    for (int i = first; i < args.hidden / 8; i += threads) {
      const uint4 eight = from[i];
      const float2 a = widen(eight.x), b = widen(eight.y), c = widen(eight.z), d = widen(eight.w);
      to[2 * i] = {a.x, a.y, b.x, b.y};
      to[2 * i + 1] = {c.x, c.y, d.x, d.y};
    }
  } else if constexpr (vectors) {
    const float4* from = reinterpret_cast<const float4*>(static_cast<const float*>(args.table) + row);
    float4* to = reinterpret_cast<float4*>(y);
    for (int i = first; i < args.hidden / 4; i += threads) to[i] = from[i];
  } else {
    for (int i = first; i < args.hidden; i += threads) {
      y[i] = bf16 ? bf16_to_float(static_cast<const uint16_t*>(args.table)[row + i])
                  : static_cast<const float*>(args.table)[row + i];
    }
  }
}

}  // namespace

cudaError_t embed_cuda(const EmbedArgs& args, int32_t capacity, const CudaTarget& target) {
  if (args.table_type != DType::f32 && args.table_type != DType::bf16) return cudaErrorInvalidValue;
  if (capacity < 1 || args.hidden < 1) return cudaErrorInvalidValue;
  const bool bf16 = args.table_type == DType::bf16;
  const int each = bf16 ? 8 : 4;
  const bool vectors = args.hidden % each == 0 && reinterpret_cast<uintptr_t>(args.table) % 16 == 0 &&
                       reinterpret_cast<uintptr_t>(args.y) % 16 == 0;
  const int pieces = vectors ? args.hidden / each : args.hidden;
  const LaunchShape shape = {dim3(unsigned(capacity)),
                             dim3(unsigned(std::min(kMostThreads, (pieces + 31) / 32 * 32)))};
  if (bf16)
    return launch(target, shape, vectors ? embed_kernel<true, true> : embed_kernel<true, false>, args);
  return launch(target, shape, vectors ? embed_kernel<false, true> : embed_kernel<false, false>, args);
}

}  // namespace nibblet
