#include "kernels/linear/compact.cuh"
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

/// The warps with a part of a row tile.
struct TileWarps {
  uint16_t first, last;

  __device__ __forceinline__ TileWarps(const LinearTask& task, int32_t tile, int32_t units, int warps)
      : first(uint16_t(uint32_t((tile * task.units + 1) * warps - 1) / uint32_t(units))),
        last(uint16_t(uint32_t((tile + 1) * task.units * warps - 1) / uint32_t(units))) {
    // Warp w starts at floor(units · w / warps): these have the first and the last unit of the tile.
  }
};

/// Output r of a block. The constructor may run before the dependency wait.
template <Format format>
struct Output {
  int32_t n, r;
  OutputConstants constants;
  RowCodes<format> codes;
  float before = 0, exceptions = 0;

  __device__ __forceinline__ Output(const LinearTask& task, int32_t first_tile, int32_t r)
      : n(first_tile * kFragmentRows + r), r(r), constants(task.epilogue, n), codes(task, n) {}
  __device__ __forceinline__ void read_before(const LinearTask& task) {
    before = output_before(task.epilogue, 0, n);
  }
  /// @param x  the staged token
  __device__ __forceinline__ void add_exceptions(const LinearTask& task, const uint16_t* x) {
    exceptions =
        codes.exceptions(task, [x](int32_t k) { return bf16_to_float(x[k]) * (1.0f / kInputScale<format>); });
  }
  __device__ __forceinline__ void write(const LinearTask& task, const TileWarps& warps,
                                        const float* sums) const {
    if (n >= task.epilogue.out) return;
    float total = 0;
    for (int32_t warp = warps.first; warp <= warps.last; warp++) total += sums[r + warp * kFragmentRows];
    write_output(task.epilogue, constants, 0, n, codes.whole(total, kOneTokenScale<format>, exceptions),
                 before);
  }
};

template <Format format, int kStages>
__global__ void __launch_bounds__(kOneTokenWarps * 32, format == Format::nvfp4 ? 2 : 3)
    linear_one_token(const LinearTask task) {
  grid_dependency_launch();
  using Ring = UnitRing<format, kStages>;
  constexpr int32_t kUnitInputs = fragment_inputs(format);
  const int lane = int(threadIdx.x % 32), warp = int(threadIdx.x / 32), warps = int(blockDim.x / 32);
  const int32_t first_tile = share(task.tiles, int(blockIdx.x), int(gridDim.x));
  const int32_t last_tile = share(task.tiles, int(blockIdx.x) + 1, int(gridDim.x));
  const int32_t units = (last_tile - first_tile) * task.units;
  const int32_t begin = share(units, warp, warps), end = share(units, warp + 1, warps);

  uint8_t* shared = dynamic_shared<uint8_t>();
  Ring ring(shared + warp * Ring::kBytes,
            task.weight + size_t(first_tile * task.units + begin) * Ring::kUnitBytes, end - begin, lane);
  uint16_t* x = reinterpret_cast<uint16_t*>(shared + warps * Ring::kBytes);
  // A warp's sums of a tile lie at tile + warp: with consecutive stretches no two of these are equal.
  float* sums = reinterpret_cast<float*>(x + task.units * kUnitInputs);
  float* scratch = sums + (last_tile - first_tile + warps) * kFragmentRows;

  const int32_t begin_tile = int32_t(uint32_t(begin) / uint32_t(task.units));
  int32_t unit = begin - begin_tile * task.units;
  int32_t to = (begin_tile + warp) * kFragmentRows + lane / 4;

  RowStage<2> row;
  row.prefetch(task.prologue);
  Output<format> output(task, first_tile, int32_t(threadIdx.x));
  // Through shared memory: in a register it would be computed where it is used, after the wait, by code that no cache holds.
  TileWarps* tile_warps = reinterpret_cast<TileWarps*>(scratch + kScratchFloats) + threadIdx.x;
  *tile_warps = TileWarps(task, int32_t(threadIdx.x) / kFragmentRows, units, warps);

  settle(unit), settle(to);
  grid_dependency_wait();
  const int32_t rows = live_rows(task);
  const int64_t token = task.selected && rows == 0 ? 0 : token_of(task, 0);
  row.stage(task.prologue, token, kInputScale<format>, task.units * kUnitInputs, scratch,
            [&](int32_t k, const uint4& words) { *reinterpret_cast<uint4*>(x + k) = words; });
  output.read_before(task);
  __syncthreads();
  // Now, while weights are on their way: a long list has to be waited for.
  output.add_exceptions(task, x);

  Token<format> inputs, inputs_after;
  RowSums<format> total;
  const auto end_tile = [&] {
    total.finish();
    if (lane % 4 == 0) {
      sums[to] = total.upper;
      sums[to + 8] = total.lower;
    }
    total = {};
    to += kFragmentRows;
  };
  for (int32_t left = end - begin; left > 0; left -= Ring::kStageUnits) {
    // The products of both units first: two chains of mma, and no branch between them.
    const uint8_t* slot = ring.wait();
    const Unit<format> weights = read_unit<format>(slot, lane);
    const Unit<format> weights_after = read_unit<format>(slot + Ring::kUnitBytes, lane);
    const int32_t after = unit + 1 == task.units ? 0 : unit + 1;
    inputs.read(x + unit * kUnitInputs, lane);
    inputs_after.read(x + after * kUnitInputs, lane);
    ring.release();
    RowSums<format> sum, sum_after;
    sum.add(weights, inputs);
    sum_after.add(weights_after, inputs_after);
    total.add(sum);
    if (after == 0 || left == 1) end_tile();
    if (left == 1) break;
    total.add(sum_after);
    unit = after + 1 == task.units ? 0 : after + 1;
    if (unit == 0 || left == 2) end_tile();
  }
  __syncthreads();
  if (rows == 0) return;

  const int32_t outputs = (last_tile - first_tile) * kFragmentRows;
  for (int32_t r = int32_t(threadIdx.x); r < outputs; r += int32_t(blockDim.x)) {
    if (r != int32_t(threadIdx.x)) {
      output = Output<format>(task, first_tile, r);
      *tile_warps = TileWarps(task, r / kFragmentRows, units, warps);
      output.read_before(task);
      output.add_exceptions(task, x);
    }
    output.write(task, *tile_warps, sums);
  }
}

template <Format format, int kStages>
cudaError_t launch_stages(const LinearTask& task, const OneTokenPlan& plan, const CudaTarget& target) {
  const size_t bytes = shared_bytes(plan, format, task.epilogue.out, task.prologue.in);
  const cudaError_t error = allow_shared_memory(linear_one_token<format, kStages>, bytes);
  if (error != cudaSuccess) return error;
  const LaunchShape shape = {dim3(unsigned(plan.blocks)), dim3(unsigned(plan.warps * 32)), bytes};
  return launch(target, shape, linear_one_token<format, kStages>, task);
}

template <Format format>
cudaError_t launch_format(const LinearTask& task, const OneTokenPlan& plan, const CudaTarget& target) {
  switch (plan.stages) {
    case 3:
      return launch_stages<format, 3>(task, plan, target);
    case 4:
      return launch_stages<format, 4>(task, plan, target);
    case 6:
      return launch_stages<format, 6>(task, plan, target);
  }
  if constexpr (format == Format::compact_bf16) {
    if (plan.stages == 5) return launch_stages<format, 5>(task, plan, target);
    if (plan.stages == 8) return launch_stages<format, 8>(task, plan, target);
  }
  return cudaErrorInvalidValue;
}

}  // namespace

size_t shared_bytes(const OneTokenPlan& plan, Format format, int32_t out, int32_t in) {
  const int32_t tiles = round_up(out, kFragmentRows) / kFragmentRows;
  const int32_t tiles_in_block = (tiles + plan.blocks - 1) / plan.blocks;
  return size_t(plan.warps * plan.stages) * 2 * fragment_unit_bytes(format) +
         size_t(fragment_units(format, in)) * size_t(fragment_inputs(format)) * 2 +
         size_t(tiles_in_block + plan.warps) * kFragmentRows * sizeof(float) +
         kScratchFloats * sizeof(float) + size_t(plan.warps) * 32 * sizeof(TileWarps);
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
    case Format::compact_bf16:
      return launch_format<Format::compact_bf16>(task, plan, target);
    case Format::f32:
      break;
  }
  return cudaErrorInvalidValue;
}

}  // namespace nibblet
