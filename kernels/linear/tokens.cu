#include "kernels/linear/compact.cuh"
#include "kernels/linear/fragments.cuh"
#include "kernels/linear/plan.cuh"

/// y for several tokens: tokens are the columns of B, so that each unit of weights is decoded once for up to 64 of them.
///
/// A warp has two row tiles and a stretch of their units, which it multiplies with all tokens of the block; `splits` warps
/// share the units of two tiles, and their sums meet in shared memory in the order of the warps. Units wait in a ring of
/// each warp; x̂ comes from the caches, where the other warps' reads put it: prepared, or bf16 rows as they are. A warp asks
/// for what it multiplies next before it multiplies what it has, as the second-level cache takes hundreds of cycles.
namespace nibblet {
namespace {

using namespace fragments;

/// Sums in shared memory: 8 tokens of 16 rows, padded so that a warp's writes meet 32 banks.
constexpr int kTokenFloats = 20;
constexpr int kTileFloats = 8 * kTokenFloats;

/// Pieces of x̂ (16 bytes a lane and tile of tokens) that a warp asks for ahead, in registers.
constexpr int pieces_ahead(int token_tiles) { return token_tiles <= 2 ? 4 : token_tiles == 4 ? 2 : 1; }

/// Where a lane finds its inputs of each tile of tokens.
template <Format format, int kTokenTiles>
struct Inputs {
  const uint8_t* x;
  uint32_t tile[kTokenTiles];
  int unit_bytes, piece_bytes;

  __device__ __forceinline__ Inputs(const LinearTask& task, int32_t first_row, int32_t rows, bool direct,
                                    int lane) {
    constexpr int kInputs = fragment_inputs(format);
    if (direct) {
      const int64_t stride = task.prologue.x_stride * 2;
      x = static_cast<const uint8_t*>(task.prologue.x) + first_row * stride;
      unit_bytes = kInputs * 2;
      piece_bytes = 16;
#pragma unroll
      for (int i = 0; i < kTokenTiles; i++) {
        // Beyond the last row a lane reads that one again.
        const int32_t row = i * 8 + lane / 4;
        tile[i] = uint32_t((row < rows ? row : rows - 1) * stride) + lane % 4 * (kInputs / 2);
      }
    } else {
      const size_t bytes = token_tile_bytes(format, task.prologue.in);
      x = task.prepared + size_t(first_row / 8) * bytes;
      unit_bytes = kInputs * 16;
      piece_bytes = 512;
#pragma unroll
      for (int i = 0; i < kTokenTiles; i++) tile[i] = uint32_t(i * bytes) + lane * 16;
    }
  }

  /// Where piece `piece` of the whole row begins, pieces of all units counted.
  __device__ __forceinline__ const uint8_t* piece(int32_t piece) const {
    constexpr int kPieces = kTokenPieces<format>;
    return x + size_t(piece / kPieces) * size_t(unit_bytes) + piece % kPieces * piece_bytes;
  }

  /// Input k of token `token` of the block, bf16.
  __device__ __forceinline__ uint16_t element(const Prologue& prologue, bool direct, int32_t token,
                                              int32_t k) const {
    const size_t at = direct ? (size_t(token) * size_t(prologue.x_stride) + size_t(k)) * 2
                             : size_t(token / 8) * token_tile_bytes(format, prologue.in) +
                                   token_piece_offset(format, token % 8, k / 8 * 8) + size_t(k % 8) * 2;
    return *reinterpret_cast<const uint16_t*>(x + at);
  }
};

template <Format format, int kTokenTiles, int kRowTiles>
__global__ void __launch_bounds__(kTokensWarps * 32, kTokenTiles == 1 ? 3 : 1)
    linear_tokens(const LinearTask task, int splits, bool direct) {
  grid_dependency_launch();
  constexpr int32_t kUnitBytes = int32_t(fragment_unit_bytes(format));
  constexpr int32_t kStageBytes = kRowTiles * kUnitBytes;
  constexpr int kStages = tokens_stages(format, kRowTiles);
  constexpr int kPieces = kTokenPieces<format>, kAhead = pieces_ahead(kTokenTiles);
  const int lane = int(threadIdx.x % 32), warp = int(threadIdx.x / 32), split = warp % splits;
  const int32_t groups = kTokensWarps / splits;
  const int32_t first_group = int32_t(blockIdx.x) * groups;
  const int32_t begin = task.units * split / splits, end = task.units * (split + 1) / splits;
  uint8_t* ring = dynamic_shared<uint8_t>() + warp * kStages * kStageBytes;

  // Beyond the last tile a warp computes the last one again, and nobody looks.
  const int32_t first_tile = (first_group + warp / splits) * kRowTiles;
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

  grid_dependency_wait();
  const int32_t first_row = int32_t(blockIdx.y) * kTokenTiles * 8;
  const int32_t rows = live_rows(task) - first_row;
  if (rows <= 0) {
    copy_async_wait<0>();
    return;
  }
  const Inputs<format, kTokenTiles> inputs(task, first_row, rows, direct, lane);

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

  // A row tile of each warp at a time. A thread keeps its row of the tile: 16 rows times 16 tokens at a time.
  float* shared = dynamic_shared<float>();
  float* mine = shared + warp * kTokenTiles * kTileFloats + lane % 4 * 2 * kTokenFloats + lane / 4;
  constexpr int kTokens = kTokenTiles * 8, kStep = kTokensWarps * 32 / kFragmentRows;
  const int32_t in_tile = int32_t(threadIdx.x) % kFragmentRows;
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
    for (int32_t group = 0; group < groups; group++) {
      const int32_t n = ((first_group + group) * kRowTiles + round) * kFragmentRows + in_tile;
      if (n >= task.epilogue.out) break;
      const OutputConstants constants(task.epilogue, n);
      const RowCodes<format> codes(task, n);
      const float* from = shared + group * splits * kTokenTiles * kTileFloats;
      for (int32_t token = int32_t(threadIdx.x) / kFragmentRows; token < kTokens && token < rows;
           token += kStep) {
        const float* terms = from + token / 8 * kTileFloats + token % 8 * kTokenFloats + in_tile;
        float sum = 0;
        for (int s = 0; s < splits; s++) sum += terms[s * kTokenTiles * kTileFloats];
        const int32_t row = first_row + token;
        const float exceptions = codes.exceptions(
            task, [&](int32_t k) { return bf16_to_float(inputs.element(task.prologue, direct, token, k)); });
        write_output(task.epilogue, constants, row, n, codes.whole(sum, kTokensScale<format>, exceptions),
                     output_before(task.epilogue, row, n));
      }
    }
  }
}

template <Format format, int kTokenTiles, int kRowTiles>
cudaError_t launch_rows(const LinearTask& task, const TokensPlan& plan, const CudaTarget& target) {
  const size_t bytes = shared_bytes(plan, format);
  const cudaError_t error = allow_shared_memory(linear_tokens<format, kTokenTiles, kRowTiles>, bytes);
  if (error != cudaSuccess) return error;
  const int32_t tiles_of_block = kRowTiles * kTokensWarps / plan.splits, tokens = kTokenTiles * 8;
  const LaunchShape shape = {dim3(unsigned((task.tiles + tiles_of_block - 1) / tiles_of_block),
                                  unsigned((task.capacity + tokens - 1) / tokens)),
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
  // The sums take the place of the ring.
  const size_t ring = size_t(kTokensWarps) * size_t(tokens_stages(format, plan.row_tiles)) *
                      size_t(plan.row_tiles) * fragment_unit_bytes(format);
  const size_t sums = size_t(kTokensWarps) * size_t(plan.token_tiles) * kTileFloats * sizeof(float);
  return ring > sums ? ring : sums;
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
