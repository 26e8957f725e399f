#include "kernels/linear/fragments.cuh"
#include "kernels/linear/plan.cuh"
#include "kernels/linear/ring.cuh"

/// y for one token: a kernel that does little but wait for its weights.
///
/// A block has consecutive row tiles, and each of its warps an equal stretch of their units, whatever tiles those belong
/// to: K is split inside the block, and sums meet in shared memory in the order of the warps. Each warp keeps a ring of
/// units in flight, which it fills before the dependency wait. Blocks make x̂ themselves, each all of it.
namespace nibblet {
namespace {

using namespace fragments;

constexpr int kScratchFloats = 32;

/// Where part `index` of `parts` of `count` things starts. 32 bits do, and divide faster.
__device__ __forceinline__ int32_t share(int32_t count, int index, int parts) {
  return int32_t(uint32_t(count) * uint32_t(index) / uint32_t(parts));
}

/// Output r of a block. All but read_before and write may happen before the dependency wait.
struct Output {
  int32_t n, r, first_warp, last_warp;
  OutputConstants constants;
  float before = 0;

  __device__ __forceinline__ Output(const LinearTask& task, int32_t first_tile, int32_t units, int warps,
                                    int32_t r)
      : n(first_tile * kFragmentRows + r), r(r), constants(task.epilogue, n) {
    // Warp w starts at floor(units · w / warps): these have the first and the last unit of the tile.
    const int32_t tile = r / kFragmentRows;
    first_warp = ((tile * task.units + 1) * warps - 1) / units;
    last_warp = ((tile + 1) * task.units * warps - 1) / units;
  }
  __device__ __forceinline__ void read_before(const LinearTask& task) {
    before = output_before(task.epilogue, 0, n);
  }
  __device__ __forceinline__ void write(const LinearTask& task, const float* sums, float scale) const {
    if (n >= task.epilogue.out) return;
    float total = 0;
    for (int32_t warp = first_warp; warp <= last_warp; warp++) total += sums[r + warp * kFragmentRows];
    write_output(task.epilogue, constants, 0, n, total * scale, before);
  }
};

template <Format format, bool kBulk>
__global__ void __launch_bounds__(512, 2) linear_one_token(const LinearTask task, int stages) {
  grid_dependency_launch();
  constexpr int32_t kUnitBytes = int32_t(fragment_unit_bytes(format));
  constexpr int32_t kUnitInputs = fragment_inputs(format);
  const int lane = int(threadIdx.x % 32), warp = int(threadIdx.x / 32), warps = int(blockDim.x / 32);
  const int32_t first_tile = share(task.tiles, int(blockIdx.x), int(gridDim.x));
  const int32_t last_tile = share(task.tiles, int(blockIdx.x) + 1, int(gridDim.x));
  const int32_t units = (last_tile - first_tile) * task.units;
  const int32_t begin = share(units, warp, warps), end = share(units, warp + 1, warps);

  uint8_t* shared = dynamic_shared<uint8_t>();
  uint8_t* slots = shared + warp * stages * kUnitBytes;
  shared += warps * stages * kUnitBytes;
  uint64_t* barriers = reinterpret_cast<uint64_t*>(shared) + warp * stages;
  shared += warps * stages * int(sizeof(uint64_t));
  UnitRing<format, kBulk> ring(slots, barriers, stages,
                               task.weight + size_t(first_tile * task.units + begin) * kUnitBytes,
                               end - begin, lane);
  uint16_t* x = reinterpret_cast<uint16_t*>(shared);
  shared += task.units * kUnitInputs * 2;
  // A warp's sums of a tile lie at tile + warp: with consecutive stretches no two of these are equal.
  float* sums = reinterpret_cast<float*>(shared);
  float* scratch = sums + (last_tile - first_tile + warps) * kFragmentRows;

  RowStage<2> row;
  row.prefetch(task.prologue);
  Output output(task, first_tile, units, warps, int32_t(threadIdx.x));

  grid_dependency_wait();
  const int32_t rows = live_rows(task);
  const int64_t token = task.selected && rows == 0 ? 0 : token_of(task, 0);
  row.stage(task.prologue, token, kInputScale<format>, task.units * kUnitInputs, scratch,
            [&](int32_t k, const uint4& words) { *reinterpret_cast<uint4*>(x + k) = words; });
  output.read_before(task);
  __syncthreads();

  Token<format> inputs;
  RowSums<format> row_sums;
  int32_t unit = begin % task.units;
  float* to = sums + (begin / task.units + warp) * kFragmentRows + lane / 4;
  for (int32_t left = end - begin; left > 0; left--) {
    const Unit<format> weights = read_unit<format>(ring.wait(), lane);
    inputs.read(x + unit * kUnitInputs, lane);
    ring.release();
    row_sums.add(weights, inputs);
    if (++unit == task.units || left == 1) {
      row_sums.finish();
      if (lane % 4 == 0) {
        to[0] = row_sums.upper;
        to[8] = row_sums.lower;
      }
      row_sums = {};
      unit = 0;
      to += kFragmentRows;
    }
  }
  __syncthreads();
  if (rows == 0) return;

  const int32_t outputs = (last_tile - first_tile) * kFragmentRows;
  for (int32_t r = int32_t(threadIdx.x); r < outputs; r += int32_t(blockDim.x)) {
    if (r != int32_t(threadIdx.x)) {
      output = Output(task, first_tile, units, warps, r);
      output.read_before(task);
    }
    output.write(task, sums, kOneTokenScale<format>);
  }
}

template <Format format, bool kBulk>
cudaError_t launch_copies(const LinearTask& task, const OneTokenPlan& plan, const CudaTarget& target) {
  const size_t bytes = shared_bytes(plan, format, task.epilogue.out, task.prologue.in);
  const cudaError_t error = allow_shared_memory(linear_one_token<format, kBulk>, bytes);
  if (error != cudaSuccess) return error;
  const LaunchShape shape = {dim3(unsigned(plan.blocks)), dim3(unsigned(plan.warps * 32)), bytes};
  return launch(target, shape, linear_one_token<format, kBulk>, task, plan.stages);
}

template <Format format>
cudaError_t launch_format(const LinearTask& task, const OneTokenPlan& plan, const CudaTarget& target) {
  if (plan.bulk) return launch_copies<format, true>(task, plan, target);
  if (plan.stages != UnitRing<format, false>::kCopyStages) return cudaErrorInvalidValue;
  return launch_copies<format, false>(task, plan, target);
}

}  // namespace

size_t shared_bytes(const OneTokenPlan& plan, Format format, int32_t out, int32_t in) {
  const int32_t tiles = round_up(out, kFragmentRows) / kFragmentRows;
  const int32_t tiles_in_block = (tiles + plan.blocks - 1) / plan.blocks;
  return size_t(plan.warps * plan.stages) * (fragment_unit_bytes(format) + sizeof(uint64_t)) +
         size_t(fragment_units(format, in)) * size_t(fragment_inputs(format)) * 2 +
         size_t(tiles_in_block + plan.warps) * kFragmentRows * sizeof(float) + kScratchFloats * sizeof(float);
}

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
