#include "kernels/linear/plan.cuh"
#include "kernels/linear/token_fragments.cuh"

/// x̂ of many rows, once for all blocks that read it: one block a row.
namespace nibblet {
namespace {

constexpr int kThreads = 256;

template <Format format>
__global__ void __launch_bounds__(kThreads) linear_prepare(const LinearTask task) {
  grid_dependency_launch();
  __shared__ float scratch[32];
  RowStage<2> stage;
  stage.prefetch(task.prologue);
  const int32_t row = int32_t(blockIdx.x);
  int32_t live = live_rows(task), token = row < live ? int32_t(token_of(task, row)) : 0;
  settle(live), settle(token);
  grid_dependency_wait();
  if (row >= live) return;
  if constexpr (format == Format::f32) {
    const int32_t padded = round_up(task.prologue.in, kPieceInputs);
    uint16_t* to = reinterpret_cast<uint16_t*>(task.prepared) + int64_t(row) * padded;
    stage.stage(task.prologue, token, 1, padded, scratch,
                [&](int32_t k, const uint4& words) { *reinterpret_cast<uint4*>(to + k) = words; });
  } else {
    const int32_t padded = task.units * fragment_inputs(format);
    uint8_t* tile = task.prepared + size_t(row / 8) * fragments::token_tile_bytes(format, task.prologue.in);
    stage.stage(task.prologue, token, 1, padded, scratch, [&](int32_t k, const uint4& words) {
      *reinterpret_cast<uint4*>(tile + fragments::token_piece_offset(format, row % 8, k)) = words;
    });
  }
}

}  // namespace

cudaError_t linear_prepare_cuda(const LinearTask& task, Format format, const CudaTarget& target) {
  const LaunchShape shape = {dim3(unsigned(task.capacity)), dim3(kThreads)};
  switch (format) {
    case Format::f32:
      return launch(target, shape, linear_prepare<Format::f32>, task);
    case Format::nvfp4:
      return launch(target, shape, linear_prepare<Format::nvfp4>, task);
    case Format::bf16:
    case Format::e4m3:
    case Format::compact_bf16:
      return launch(target, shape, linear_prepare<Format::bf16>, task);
  }
  return cudaErrorInvalidValue;
}

}  // namespace nibblet
