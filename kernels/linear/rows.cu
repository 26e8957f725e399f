#include "kernels/linear/plan.cuh"

/// Products with float32 weights in checkpoint order: plain. Only checkpoints in float32 or float16 have them.
namespace nibblet {
namespace {

constexpr int kWarps = 8;
constexpr int kTokens = 8;

/// A warp computes one output for kTokens rows at a time.
__global__ void __launch_bounds__(kWarps * 32) linear_rows(const LinearTask task) {
  grid_dependency_launch();
  const int32_t n = int32_t(blockIdx.x) * kWarps + int32_t(threadIdx.x / 32);
  const int lane = int(threadIdx.x % 32);
  const OutputConstants constants(task.epilogue, n);
  grid_dependency_wait();
  if (n >= task.epilogue.out) return;
  const int32_t in = task.prologue.in, padded = round_up(in, kPieceInputs);
  const float* weights = reinterpret_cast<const float*>(task.weight) + int64_t(n) * in;
  const int32_t rows = live_rows(task);
  for (int32_t first = int32_t(blockIdx.y) * kTokens; first < rows; first += int32_t(gridDim.y) * kTokens) {
    const uint16_t* x = reinterpret_cast<const uint16_t*>(task.prepared) + int64_t(first) * padded;
    const int32_t tokens = rows - first < kTokens ? rows - first : kTokens;
    float sums[kTokens] = {};
    for (int32_t k = lane; k < in; k += 32) {
      const float weight = weights[k];
#pragma unroll
      for (int m = 0; m < kTokens; m++) {
        if (m < tokens) sums[m] += weight * bf16_to_float(x[int64_t(m) * padded + k]);
      }
    }
#pragma unroll
    for (int m = 0; m < kTokens; m++) {
      for (int width = 16; width > 0; width /= 2) sums[m] += __shfl_xor_sync(0xffffffffu, sums[m], width);
      if (lane == m && m < tokens) {
        write_output(task.epilogue, constants, first + m, n, sums[m],
                     output_before(task.epilogue, first + m, n));
      }
    }
  }
}

}  // namespace

cudaError_t linear_rows_cuda(const LinearTask& task, const CudaTarget& target) {
  const int32_t token_groups = (task.capacity + kTokens - 1) / kTokens;
  const LaunchShape shape = {dim3(unsigned((task.epilogue.out + kWarps - 1) / kWarps),
                                  unsigned(token_groups < 64 ? token_groups : 64)),
                             dim3(kWarps * 32)};
  return launch(target, shape, linear_rows, task);
}

}  // namespace nibblet
