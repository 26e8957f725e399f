#include "kernels/cuda/arrive.h"
#include "kernels/linear/plan.cuh"
#include "kernels/linear/token_outputs.cuh"

/// y for several tokens: tokens are the columns of B, so that each unit of weights is decoded once for up to 64 of them.
///
/// A warp has a few row tiles and a stretch of their units, which it multiplies with all tokens of the block; `splits` warps
/// share the units of such tiles, and their sums meet in shared memory in the order of the warps. Where there would be too
/// few blocks, `cuts` of them share the units too: their sums meet in memory, where the last to arrive adds them in order.
/// Units wait in a ring of each warp; x̂ comes from the caches, where the other warps' reads put it: prepared, or bf16 rows as
/// they are. A warp asks for what it multiplies next before it multiplies what it has, as the second-level cache takes
/// hundreds of cycles.
namespace nibblet {
namespace {

using namespace fragments;

/// Pieces of x̂ (16 bytes a lane and tile of tokens) that a warp asks for ahead, in registers.
constexpr int pieces_ahead(int token_tiles) { return token_tiles <= 2 ? 4 : token_tiles == 4 ? 2 : 1; }

/// The ring, and later the sums in its place. Constants of the block's rows lie behind it.
constexpr size_t ring_bytes(Format format, int token_tiles, int row_tiles) {
  const size_t ring =
      size_t(kTokensWarps * tokens_stages(format, row_tiles) * row_tiles) * fragment_unit_bytes(format);
  const size_t sums = size_t(kTokensWarps * token_tiles * kTileFloats) * sizeof(float);
  return ring > sums ? ring : sums;
}

template <Format format, int kTokenTiles, int kRowTiles>
__global__ void __launch_bounds__(kTokensWarps * 32, kTokenTiles == 1 ? 3 : 1)
    linear_tokens(const LinearTask task, int splits, bool direct) {
  grid_dependency_launch();
  constexpr int32_t kUnitBytes = int32_t(fragment_unit_bytes(format));
  constexpr int32_t kStageBytes = kRowTiles * kUnitBytes;
  constexpr int kStages = tokens_stages(format, kRowTiles);
  constexpr int kPieces = kTokenPieces<format>, kAhead = pieces_ahead(kTokenTiles);
  const int lane = int(threadIdx.x % 32), warp = int(threadIdx.x / 32);
  const int32_t cuts = int32_t(gridDim.z), shares = splits * cuts;
  const int32_t share = int32_t(blockIdx.z) * splits + warp % splits;
  const int32_t begin = task.units * share / shares, end = task.units * (share + 1) / shares;
  // Of the block, whose last ones there may not be.
  const int32_t tiles = kTokensWarps / splits * kRowTiles, block_tile = int32_t(blockIdx.x) * tiles;
  uint8_t* ring = dynamic_shared<uint8_t>() + warp * kStages * kStageBytes;

  // Beyond the last tile a warp computes the last one again, and nobody looks.
  const int32_t first_tile = block_tile + warp / splits * kRowTiles;
  const size_t tile_bytes = size_t(task.units) * kUnitBytes;
  const auto fetch = [&](int32_t unit, int stage) {
    if (unit < end) {
      const uint8_t* from = task.weight + size_t(unit) * kUnitBytes;
#pragma unroll
      for (int r = 0; r < kRowTiles; r++) {
        const int32_t tile = first_tile + r < task.tiles ? first_tile + r : task.tiles - 1;
        copy_unit<format>(ring + stage * kStageBytes + r * kUnitBytes, from + size_t(tile) * tile_bytes,
                          lane);
      }
    }
    copy_async_commit();
  };
#pragma unroll
  for (int stage = 0; stage < kStages; stage++) fetch(begin + stage, stage);
  using Outputs = TileOutputs<format, kTokenTiles>;
  using Row = OutputRow<format>;
  Row* rows_of_block =
      reinterpret_cast<Row*>(dynamic_shared<uint8_t>() + ring_bytes(format, kTokenTiles, kRowTiles));
#pragma unroll 1
  for (int32_t i = int32_t(threadIdx.x); i < tiles * kFragmentRows; i += kTokensWarps * 32) {
    rows_of_block[i] = Row(task, block_tile * kFragmentRows + i);
  }
  const int32_t first_row = int32_t(blockIdx.y) * kTokenTiles * 8;
  int32_t rows = live_rows(task) - first_row;
  settle(rows);

  grid_dependency_wait();
  if (rows <= 0) {
    copy_async_wait<0>();
    return;
  }
  const TokenInputs<format, kTokenTiles> inputs(task, first_row, rows, direct, lane);

  float c[kRowTiles][kTokenTiles][4] = {};
  uint4 tokens[kAhead][kTokenTiles];
  const int32_t first_piece = begin * kPieces, last_piece = end * kPieces - 1;
  if (begin < end) {
#pragma unroll
    for (int j = 0; j < kAhead; j++) {
      const uint8_t* x = inputs.piece(first_piece + j < last_piece ? first_piece + j : last_piece);
#pragma unroll
      for (int i = 0; i < kTokenTiles; i++)
        tokens[j][i] = *reinterpret_cast<const uint4*>(x + inputs.tile[i]);
    }
  }
  int32_t unit = begin;
  int stage = 0;
#pragma unroll 1
  for (int32_t at = first_piece; at <= last_piece; at += kAhead) {
#pragma unroll
    for (int j = 0; j < kAhead; j++) {
      const int32_t piece = at + j;
      if (kPieces == 1 && j > 0 && piece > last_piece) break;
      // Known to the compiler where whole units are asked for ahead.
      const int in_unit = kAhead >= kPieces ? j % kPieces : piece % kPieces;
      if (in_unit == 0) {
        copy_async_wait<kStages - 1>();
        __syncwarp();
      }
      const uint8_t* x = inputs.piece(piece + kAhead < last_piece ? piece + kAhead : last_piece);
#pragma unroll
      for (int r = 0; r < kRowTiles; r++) {
        uint32_t a[2][4];
        read_piece<format>(ring + stage * kStageBytes + r * kUnitBytes, in_unit, lane, a);
#pragma unroll
        for (int mma = 0; mma < 2; mma++) {
#pragma unroll
          for (int i = 0; i < kTokenTiles; i++) {
            mma_bf16(c[r][i], a[mma][0], a[mma][1], a[mma][2], a[mma][3], word_of(tokens[j][i], 2 * mma),
                     word_of(tokens[j][i], 2 * mma + 1));
            if (r == kRowTiles - 1 && mma == 1) {
              tokens[j][i] = *reinterpret_cast<const uint4*>(x + inputs.tile[i]);
            }
          }
        }
      }
      if (in_unit == kPieces - 1) {
        __syncwarp();
        fetch(unit + kStages, stage);
        unit++;
        if (++stage == kStages) stage = 0;
      }
    }
  }
  copy_async_wait<0>();

  // A row tile of each warp at a time.
  float* shared = dynamic_shared<float>();
  float* mine = shared + warp * kTokenTiles * kTileFloats + lane % 4 * 2 * kTokenFloats + lane / 4;
  const int32_t part_floats = tiles * Outputs::kPartFloats;
  const int32_t place = int32_t(blockIdx.y * gridDim.x + blockIdx.x);
  float* parts = task.parts + size_t(place * cuts) * size_t(part_floats);
#pragma unroll 1
  for (int round = 0; round < kRowTiles; round++) {
    __syncthreads();
#pragma unroll
    for (int r = 0; r < kRowTiles; r++) {
      if (r != round) continue;
#pragma unroll
      for (int i = 0; i < kTokenTiles; i++) {
        float* to = mine + i * kTileFloats;
        to[0] = c[r][i][0];
        to[kTokenFloats] = c[r][i][1];
        to[8] = c[r][i][2];
        to[kTokenFloats + 8] = c[r][i][3];
      }
    }
    __syncthreads();
#pragma unroll 1
    for (int32_t tile = round, w = 0; tile < tiles; tile += kRowTiles, w += splits) {
      Outputs outputs(rows);
      outputs.add_warps(shared + w * kTokenTiles * kTileFloats, splits);
      if (cuts > 1) {
        outputs.store_part(parts + int32_t(blockIdx.z) * part_floats + tile * Outputs::kPartFloats);
      } else {
        outputs.write(task, inputs, first_row, block_tile + tile,
                      rows_of_block[tile * kFragmentRows + Outputs::row()]);
      }
    }
  }
  if (cuts == 1) return;
  __shared__ bool is_last;
  if (!arrive_last(task.counters + place, cuts, is_last)) return;
#pragma unroll 1
  for (int32_t tile = 0; tile < tiles; tile++) {
    Outputs outputs(rows);
    outputs.add_parts(parts + tile * Outputs::kPartFloats, cuts, part_floats);
    outputs.write(task, inputs, first_row, block_tile + tile,
                  rows_of_block[tile * kFragmentRows + Outputs::row()]);
  }
}

template <Format format, int kTokenTiles, int kRowTiles>
cudaError_t launch_rows(const LinearTask& task, const TokensPlan& plan, const CudaTarget& target) {
  const size_t bytes = shared_bytes(plan, format);
  const cudaError_t error = allow_shared_memory(linear_tokens<format, kTokenTiles, kRowTiles>, bytes);
  if (error != cudaSuccess) return error;
  const TokensGrid grid(plan, task.tiles, task.capacity);
  const LaunchShape shape = {dim3(unsigned(grid.blocks), unsigned(grid.groups), unsigned(plan.cuts)),
                             dim3(kTokensWarps * 32), bytes};
  return launch(target, shape, linear_tokens<format, kTokenTiles, kRowTiles>, task, plan.splits, plan.direct);
}

template <Format format, int kTokenTiles>
cudaError_t launch_tiles(const LinearTask& task, const TokensPlan& plan, const CudaTarget& target) {
  switch (plan.row_tiles) {
    case 1:
      if constexpr (kTokenTiles <= 2) return launch_rows<format, kTokenTiles, 1>(task, plan, target);
      break;
    case 2:
      return launch_rows<format, kTokenTiles, 2>(task, plan, target);
    case 3:
      if constexpr (kTokenTiles > 2) return launch_rows<format, kTokenTiles, 3>(task, plan, target);
      break;
    case 4:
      if constexpr (kTokenTiles > 2) return launch_rows<format, kTokenTiles, 4>(task, plan, target);
      break;
    case 5:
      if constexpr (kTokenTiles > 2) return launch_rows<format, kTokenTiles, 5>(task, plan, target);
      break;
  }
  return cudaErrorInvalidValue;
}

template <Format format>
cudaError_t launch_format(const LinearTask& task, const TokensPlan& plan, const CudaTarget& target) {
  switch (plan.token_tiles) {
    case 1:
      return launch_tiles<format, 1>(task, plan, target);
    case 2:
      return launch_tiles<format, 2>(task, plan, target);
    case 4:
      return launch_tiles<format, 4>(task, plan, target);
    case 8:
      return launch_tiles<format, 8>(task, plan, target);
  }
  return cudaErrorInvalidValue;
}

}  // namespace

size_t shared_bytes(const TokensPlan& plan, Format format) {
  const size_t rows = size_t(plan.row_tiles * kTokensWarps / plan.splits * kFragmentRows);
  const size_t row = format == Format::compact_bf16 ? sizeof(OutputRow<Format::compact_bf16>)
                                                    : sizeof(OutputRow<Format::bf16>);
  return ring_bytes(format, plan.token_tiles, plan.row_tiles) + rows * row;
}

cudaError_t linear_tokens_cuda(const LinearTask& task, Format format, const TokensPlan& plan,
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
