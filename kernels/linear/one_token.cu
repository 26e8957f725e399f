#include "kernels/linear/fragments.cuh"
#include "kernels/linear/plan.cuh"

/// y for one token: a kernel that does little but wait for its weights.
///
/// A block has consecutive row tiles, and each of its warps an equal stretch of their units, whatever tiles those belong
/// to: K is split inside the block, and sums meet in shared memory in the order of the warps. Each warp keeps a ring of
/// units in flight, which it fills before the dependency wait. Blocks make x̂ themselves, each all of it.
namespace nibblet {
namespace {

using namespace fragments;

/// Where part `index` of `parts` of `count` things starts. 32 bits do, and divide faster.
__device__ __forceinline__ int32_t share(int32_t count, int index, int parts) {
  return int32_t(uint32_t(count) * uint32_t(index) / uint32_t(parts));
}

template <Format format>
__global__ void __launch_bounds__(512, 2) linear_one_token(const LinearTask task) {
  grid_dependency_launch();
  constexpr int32_t kUnitBytes = int32_t(fragment_unit_bytes(format));
  constexpr int32_t kUnitInputs = fragment_inputs(format);
  const int lane = int(threadIdx.x % 32), warp = int(threadIdx.x / 32), warps = int(blockDim.x / 32);
  const int32_t first_tile = share(task.tiles, int(blockIdx.x), int(gridDim.x));
  const int32_t last_tile = share(task.tiles, int(blockIdx.x) + 1, int(gridDim.x));
  const int32_t units = (last_tile - first_tile) * task.units;
  const int32_t begin = share(units, warp, warps), end = share(units, warp + 1, warps);

  uint8_t* shared = dynamic_shared<uint8_t>();
  uint8_t* ring = shared + warp * kOneTokenStages * kUnitBytes;
  shared += warps * kOneTokenStages * kUnitBytes;
  uint16_t* x = reinterpret_cast<uint16_t*>(shared);
  shared += task.units * kUnitInputs * 2;
  // A warp's sums of a tile lie at tile + warp: with consecutive stretches no two of these are equal.
  float* sums = reinterpret_cast<float*>(shared);
  float* scratch = sums + (last_tile - first_tile + warps) * kFragmentRows;

  const uint8_t* weight = task.weight + size_t(first_tile) * size_t(task.units) * kUnitBytes;
  const uint64_t policy = evict_first_policy();
#pragma unroll
  for (int stage = 0; stage < kOneTokenStages; stage++) {
    if (begin + stage < end) {
      copy_unit<format>(ring + stage * kUnitBytes, weight + size_t(begin + stage) * kUnitBytes, lane, policy);
    }
    copy_async_commit();
  }
  RowStage<2> row;
  row.prefetch(task.prologue);
  const int32_t n = first_tile * kFragmentRows + int32_t(threadIdx.x);
  const OutputConstants constants(task.epilogue, n);

  grid_dependency_wait();
  const int32_t rows = live_rows(task);
  const int64_t token = task.selected && rows == 0 ? 0 : token_of(task, 0);
  row.stage(task.prologue, token, kInputScale<format>, task.units * kUnitInputs, scratch,
            [&](int32_t k, const uint4& words) { *reinterpret_cast<uint4*>(x + k) = words; });
  const float before = output_before(task.epilogue, 0, n);
  __syncthreads();

  Token<format> inputs;
  RowSums<format> row_sums;
  int32_t tile = begin / task.units, unit = begin % task.units;
  int stage = 0;
  for (int32_t u = begin; u < end; u++) {
    copy_async_wait<kOneTokenStages - 1>();
    __syncwarp();
    uint8_t* slot = ring + stage * kUnitBytes;
    const Unit<format> weights = read_unit<format>(slot, lane);
    inputs.read(x + unit * kUnitInputs, lane);
    __syncwarp();
    if (u + kOneTokenStages < end) {
      copy_unit<format>(slot, weight + size_t(u + kOneTokenStages) * kUnitBytes, lane, policy);
    }
    copy_async_commit();
    if (++stage == kOneTokenStages) stage = 0;
    row_sums.add(weights, inputs);
    if (++unit == task.units || u + 1 == end) {
      row_sums.finish();
      if (lane % 4 == 0) {
        float* to = sums + (tile + warp) * kFragmentRows + lane / 4;
        to[0] = row_sums.upper;
        to[8] = row_sums.lower;
      }
      row_sums = {};
      unit = 0;
      tile++;
    }
  }
  __syncthreads();
  if (rows == 0) return;

  for (int32_t r = int32_t(threadIdx.x); r < (last_tile - first_tile) * kFragmentRows;
       r += int32_t(blockDim.x)) {
    const int32_t output = first_tile * kFragmentRows + r;
    if (output >= task.epilogue.out) return;
    const int32_t in_block = r / kFragmentRows;
    // Warp w starts at floor(units · w / warps): these have the first and the last unit of the tile.
    const int32_t from = ((in_block * task.units + 1) * warps - 1) / units;
    const int32_t to = ((in_block + 1) * task.units * warps - 1) / units;
    float sum = 0;
    for (int32_t w = from; w <= to; w++) sum += sums[(in_block + w) * kFragmentRows + r % kFragmentRows];
    sum *= kOneTokenScale<format>;
    if (output == n) {
      write_output(task.epilogue, constants, 0, output, sum, before);
    } else {
      write_output(task.epilogue, OutputConstants(task.epilogue, output), 0, output, sum,
                   output_before(task.epilogue, 0, output));
    }
  }
}

template <Format format>
cudaError_t launch_format(const LinearTask& task, const OneTokenPlan& plan, const CudaTarget& target) {
  const cudaError_t error = allow_shared_memory(linear_one_token<format>, plan.shared_bytes);
  if (error != cudaSuccess) return error;
  const LaunchShape shape = {dim3(unsigned(plan.blocks)), dim3(unsigned(plan.warps * 32)), plan.shared_bytes};
  return launch(target, shape, linear_one_token<format>, task);
}

}  // namespace

cudaError_t linear_one_token_cuda(const LinearTask& task, Format format, const OneTokenPlan& plan,
                                  const CudaTarget& target) {
  switch (format) {
    case Format::nvfp4:
      return launch_format<Format::nvfp4>(task, plan, target);
    case Format::bf16:
      return launch_format<Format::bf16>(task, plan, target);
    case Format::e4m3:
      return launch_format<Format::e4m3>(task, plan, target);
    case Format::f32:
      break;
  }
  return cudaErrorInvalidValue;
}

}  // namespace nibblet
