#include "kernels/moe/columns.cuh"
#include "kernels/moe/tiles.cuh"
#include "kernels/pack/layout.h"

namespace nibblet {
namespace {

constexpr int kThreads = 256;
/// Each warp takes every kWarps-th block of 16 inputs.
constexpr int kWarps = kThreads / 32;
/// Panels of 16 rows in 128.
constexpr int kPanels = kColumnRows / kPanelRows;
/// 2¹¹³ twice in bf16. Scales go in as scale · 2¹¹⁹, so that weights come out as W · 2⁻⁷, far from float32 subnormals.
constexpr uint32_t kRestUnit = 0x78007800u;
constexpr float kUnit = 0x1p7f;

/// What a lane reads of 128 rows of a block of 16 inputs: words g and g + 8 of columns 2t, 2t + 1, 2t + 8 and 2t + 9, the
/// scales of rows 4 · lane on, and the inputs of token g. (g = lane / 4, t = lane % 4)
struct Block {
  uint32_t low[4];
  uint32_t high[4];
  uint32_t scales;
  uint32_t inputs[2];

  __device__ void read(const uint8_t* block, const uint16_t* input, int32_t out, int32_t chunk,
                       int32_t lane) {
    const int32_t g = lane / 4, t = lane % 4;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const size_t column = size_t(2 * t + i % 2 + i / 2 * 8);
      const uint32_t* from =
          reinterpret_cast<const uint32_t*>(block + column * column_bytes(out) + size_t(chunk) * 64);
      low[i] = __ldg(from + g);
      high[i] = __ldg(from + g + 8);
    }
    scales = __ldg(
        reinterpret_cast<const uint32_t*>(block + column_scales_offset(out) + size_t(chunk) * kColumnRows) +
        lane);
    inputs[0] = inputs[1] = 0;
    if (input == nullptr) return;
    inputs[0] = __ldcg(reinterpret_cast<const uint32_t*>(input) + t);
    inputs[1] = __ldcg(reinterpret_cast<const uint32_t*>(input) + t + 4);
  }
};

/// The scale of row 16 n + g of a block for word 4 n + g / 4 of the scales, twice.
__device__ uint32_t scale_of(uint32_t word, int32_t g) {
  const uint32_t byte = word >> (g % 4 * 8) & 0xff;
  const uint32_t scale = multiply_bf16x2(columns::scale_pair(byte * 0x10001u), columns::kScaleUnit);
  return multiply_bf16x2(scale, kRestUnit);
}

/// Adds panels n and, from the upper halves of the words, n + 4.
template <int n>
__device__ void add_panels(const Block& block, float (&sums)[kPanels][4], int32_t lane) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int panel = n + half * 4;
    const uint32_t upper = scale_of(__shfl_sync(0xffffffffu, block.scales, 4 * panel + lane / 16), lane / 4);
    const uint32_t lower =
        scale_of(__shfl_sync(0xffffffffu, block.scales, 4 * panel + 2 + lane / 16), lane / 4);
    const unsigned halves = half == 0 ? 0x5410 : 0x7632;
    const auto pair = [&](const uint32_t (&words)[4], int i, uint32_t scale) {
      return multiply_bf16x2(columns::decode<n>(__byte_perm(words[i], words[i + 1], halves)), scale);
    };
    mma_bf16(sums[panel], pair(block.low, 0, upper), pair(block.high, 0, lower), pair(block.low, 2, upper),
             pair(block.high, 2, lower), block.inputs[0], block.inputs[1]);
  }
}

/// Items of a tile of tokens and 128 rows, dealt out to the blocks.
__global__ void __launch_bounds__(kThreads, 2) moe_down_columns_all(const MoePlan plan, const uint32_t sets) {
  __shared__ float totals[kWarps / 2][kMoeTileTokens][kColumnRows];
  grid_dependency_launch();
  grid_dependency_wait();
  const int32_t thread = int32_t(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int32_t out = plan.args.hidden;
  const int32_t chunks = (out + kColumnRows - 1) / kColumnRows;
  const MoeTiles tiles(plan, sets, dynamic_shared<uint8_t>());
  for (int32_t i = int32_t(blockIdx.x); i < tiles.count() * chunks; i += int32_t(gridDim.x)) {
    const MoeItem item(tiles, i, chunks);
    const MoeTile& tile = item.tile;
    const int32_t chunk = item.piece;
    const MoeTileProduct<true> product = {plan, tiles.lists.entries, tile};
    const uint8_t* data = product.data();
    const uint16_t* input = lane / 4 < tile.count ? product.input(lane / 4) : nullptr;
    const int32_t blocks = (product.weight().in + kBlockInputs - 1) / kBlockInputs;
    const auto read = [&](Block& block, int32_t b) {
      block.read(data + size_t(b) * column_block_bytes(out),
                 input == nullptr ? nullptr : input + b * kBlockInputs, out, chunk, lane);
    };
    float sums[kPanels][4] = {};
    Block next;
    if (warp < blocks) read(next, warp);
    for (int32_t b = warp; b < blocks; b += kWarps) {
      const Block block = next;
      if (b + kWarps < blocks) read(next, b + kWarps);
      add_panels<0>(block, sums, lane);
      add_panels<1>(block, sums, lane);
      add_panels<2>(block, sums, lane);
      add_panels<3>(block, sums, lane);
    }
    // The upper half of the warps leaves its sums to the lower one, which adds its own.
    const auto each = [&](const auto& use) {
#pragma unroll
      for (int i = 0; i < kPanels * 4; ++i) {
        const int32_t row = i / 4 * kPanelRows + lane / 4 + i % 4 / 2 * 8;
        use(totals[warp % (kWarps / 2)][lane % 4 * 2 + i % 2][row], sums[i / 4][i % 4]);
      }
    };
    if (warp >= kWarps / 2) each([](float& total, float sum) { total = sum; });
    __syncthreads();
    if (warp < kWarps / 2) each([](float& total, float sum) { total += sum; });
    __syncthreads();
    for (int32_t i = thread; i < tile.count * kColumnRows; i += kThreads) {
      float sum = 0;
      for (int w = 0; w < kWarps / 2; ++w) sum += totals[w][i / kColumnRows][i % kColumnRows];
      const int32_t row = chunk * kColumnRows + i % kColumnRows;
      product.store(i / kColumnRows, row, sum * kUnit, product.row(row));
    }
    __syncthreads();
  }
}

}  // namespace

cudaError_t moe_down_columns_dense(const MoePlan& plan, uint32_t sets, const CudaTarget& target) {
  const int64_t items =
      moe_most_tiles(plan.args, sets) * (round_up(plan.args.hidden, kColumnRows) / kColumnRows);
  const int64_t blocks = 2 * int64_t(target.multiprocessors);
  const LaunchShape shape = {unsigned(items < blocks ? items : blocks), kThreads, MoeLists::bytes(plan)};
  const cudaError_t error = allow_shared_memory(moe_down_columns_all, shape.shared_bytes);
  if (error != cudaSuccess) return error;
  return launch(target, shape, moe_down_columns_all, plan, sets);
}

}  // namespace nibblet
