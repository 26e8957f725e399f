#include "kernels/attention/kept.cuh"
#include "kernels/attention/launches.h"

namespace nibblet {
namespace {

constexpr int kThreads = 256;

/// Block (x, token): elements of its k and v.
__global__ void __launch_bounds__(kThreads) append_kernel(const AttentionArgs args) {
  grid_dependency_launch();
  const int32_t token = int32_t(blockIdx.y);
  const int32_t element = int32_t(blockIdx.x * kThreads + threadIdx.x);
  const int32_t part = element / (args.kv_heads * args.head_dim);
  grid_dependency_wait();
  const Step& step = *args.step;
  if (token >= step.tokens || part > 1) return;
  const int32_t index = step.sequence_of[token];
  const Sequence sequence = step.sequences[index];
  if (!is_live(sequence, args.slots)) return;
  attention_device::append_element(args, index, sequence.position + token - sequence.first, token,
                                   CachePart(part), element / args.head_dim % args.kv_heads,
                                   element % args.head_dim);
}

}  // namespace

cudaError_t append_cuda(const AttentionArgs& args, int32_t capacity, const CudaTarget& target) {
  const int32_t elements = 2 * args.kv_heads * args.head_dim;
  const LaunchShape shape = {dim3(unsigned((elements + kThreads - 1) / kThreads), unsigned(capacity)),
                             dim3(kThreads)};
  return launch(target, shape, append_kernel, args);
}

}  // namespace nibblet
