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

  /// Input k of token `token` of the block, bf16.
  __device__ __forceinline__ uint16_t element(const Prologue& prologue, bool direct, int32_t token,
                                              int32_t k) const {
    const size_t at = direct ? (size_t(token) * size_t(prologue.x_stride) + size_t(k)) * 2
                             : size_t(token / 8) * token_tile_bytes(format, prologue.in) +
                                   token_piece_offset(format, token % 8, k / 8 * 8) + size_t(k % 8) * 2;
    return *reinterpret_cast<const uint16_t*>(x + at);
  }
};

template <Format format, int kTokenTiles>
struct Accumulators {
  float c[kTokensRowTiles][kTokenTiles][4] = {};
  /// Of each tile of tokens the piece that is multiplied next, on its way.
  uint4 next[kTokenTiles];

  __device__ __forceinline__ void fetch(const Inputs<format, kTokenTiles>& inputs, const uint8_t* x) {
#pragma unroll
    for (int i = 0; i < kTokenTiles; i++) next[i] = *reinterpret_cast<const uint4*>(x + inputs.tile[i]);
  }

  /// The first piece of `unit` was fetched before; that of `after`, which may be any unit, is fetched here.
  __device__ __forceinline__ void add(const Unit<format> (&units)[kTokensRowTiles],
                                      const Inputs<format, kTokenTiles>& inputs, int32_t unit,
                                      int32_t after) {
    const uint8_t* x = inputs.x + size_t(unit) * size_t(inputs.unit_bytes);
#pragma unroll
    for (int piece = 0; piece < kTokenPieces<format>; piece++) {
      uint4 tokens[kTokenTiles];
#pragma unroll
      for (int i = 0; i < kTokenTiles; i++) tokens[i] = next[i];
      fetch(inputs, piece + 1 < kTokenPieces<format> ? x + (piece + 1) * inputs.piece_bytes
                                                     : inputs.x + size_t(after) * size_t(inputs.unit_bytes));
#pragma unroll
      for (int r = 0; r < kTokensRowTiles; r++) {
        for_each_mma_of_piece(units[r], piece, [&](int mma, const uint32_t (&a)[4]) {
#pragma unroll
          for (int i = 0; i < kTokenTiles; i++) {
            mma_bf16(c[r][i], a[0], a[1], a[2], a[3], word_of(tokens[i], 2 * mma),
                     word_of(tokens[i], 2 * mma + 1));
          }
        });
      }
    }
  }
};

template <Format format, int kTokenTiles>
__global__ void __launch_bounds__(kTokensWarps * 32, format == Format::compact_bf16 ? 1 : 0)
    linear_tokens(const LinearTask task, int splits, bool direct) {
  grid_dependency_launch();
  constexpr int32_t kUnitBytes = int32_t(fragment_unit_bytes(format));
  constexpr int32_t kStageBytes = kTokensRowTiles * kUnitBytes;
  constexpr int kStages = tokens_stages(format);
  const int lane = int(threadIdx.x % 32), warp = int(threadIdx.x / 32), split = warp % splits;
  const int32_t pairs_in_block = kTokensWarps / splits;
  const int32_t first_pair = int32_t(blockIdx.x) * pairs_in_block;
  const int32_t begin = task.units * split / splits, end = task.units * (split + 1) / splits;
  uint8_t* ring = dynamic_shared<uint8_t>() + warp * kStages * kStageBytes;

  const uint8_t* tiles[kTokensRowTiles];
#pragma unroll
  for (int r = 0; r < kTokensRowTiles; r++) {
    // Beyond the last tile a warp computes the last one again, and nobody looks.
    const int32_t tile = (first_pair + warp / splits) * kTokensRowTiles + r;
    tiles[r] =
        task.weight + size_t(tile < task.tiles ? tile : task.tiles - 1) * size_t(task.units) * kUnitBytes;
  }
  const auto fetch = [&](int32_t unit, int stage) {
    if (unit < end) {
#pragma unroll
      for (int r = 0; r < kTokensRowTiles; r++) {
        copy_unit<format>(ring + stage * kStageBytes + r * kUnitBytes, tiles[r] + size_t(unit) * kUnitBytes,
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
  const Inputs<format, kTokenTiles> inputs(task, first_row, rows, direct, lane);

  Accumulators<format, kTokenTiles> sums;
  if (rows > 0) sums.fetch(inputs, inputs.x + size_t(begin) * size_t(inputs.unit_bytes));
  int stage = 0;
  // With no rows left the copies are only waited for.
  for (int32_t unit = begin; unit < end; unit++) {
    copy_async_wait<kStages - 1>();
    __syncwarp();
    if (rows <= 0) continue;
    Unit<format> units[kTokensRowTiles];
#pragma unroll
    for (int r = 0; r < kTokensRowTiles; r++) {
      units[r] = read_unit<format>(ring + stage * kStageBytes + r * kUnitBytes, lane);
    }
    __syncwarp();
    fetch(unit + kStages, stage);
    if (++stage == kStages) stage = 0;
    sums.add(units, inputs, unit, unit + 1 < end ? unit + 1 : unit);
  }
  copy_async_wait<0>();
  __syncthreads();
  if (rows <= 0) return;

  float* shared = dynamic_shared<float>();
  float* mine = shared + warp * kTokensRowTiles * kTokenTiles * kTileFloats;
#pragma unroll
  for (int r = 0; r < kTokensRowTiles; r++) {
#pragma unroll
    for (int tile = 0; tile < kTokenTiles; tile++) {
      float* to = mine + (r * kTokenTiles + tile) * kTileFloats + lane % 4 * 2 * kTokenFloats + lane / 4;
      to[0] = sums.c[r][tile][0];
      to[kTokenFloats] = sums.c[r][tile][1];
      to[8] = sums.c[r][tile][2];
      to[kTokenFloats + 8] = sums.c[r][tile][3];
    }
  }
  __syncthreads();

  // A thread keeps its row of the tile: 16 rows times 16 tokens at a time.
  constexpr int kTokens = kTokenTiles * 8, kStep = kTokensWarps * 32 / kFragmentRows;
  const int32_t in_tile = int32_t(threadIdx.x) % kFragmentRows;
  for (int32_t t = 0; t < pairs_in_block * kTokensRowTiles; t++) {
    const int32_t n = (first_pair * kTokensRowTiles + t) * kFragmentRows + in_tile;
    if (n >= task.epilogue.out) return;
    const OutputConstants constants(task.epilogue, n);
    const RowCodes<format> codes(task, n);
    const float* from = shared + ((t / kTokensRowTiles) * splits * kTokensRowTiles + t % kTokensRowTiles) *
                                     kTokenTiles * kTileFloats;
    for (int32_t token = int32_t(threadIdx.x) / kFragmentRows; token < kTokens && token < rows;
         token += kStep) {
      const float* terms = from + token / 8 * kTileFloats + token % 8 * kTokenFloats + in_tile;
      float sum = 0;
      for (int s = 0; s < splits; s++) sum += terms[s * kTokensRowTiles * kTokenTiles * kTileFloats];
      const int32_t row = first_row + token;
      const float exceptions = codes.exceptions(
          task, [&](int32_t k) { return bf16_to_float(inputs.element(task.prologue, direct, token, k)); });
      write_output(task.epilogue, constants, row, n, codes.whole(sum, kTokensScale<format>, exceptions),
                   output_before(task.epilogue, row, n));
    }
  }
}

template <Format format, int kTokenTiles>
cudaError_t launch_tiles(const LinearTask& task, const TokensPlan& plan, const CudaTarget& target) {
  const size_t bytes = shared_bytes(plan, format);
  const cudaError_t error = allow_shared_memory(linear_tokens<format, kTokenTiles>, bytes);
  if (error != cudaSuccess) return error;
  const int32_t pairs = (task.tiles + kTokensRowTiles - 1) / kTokensRowTiles;
  const int32_t pairs_in_block = kTokensWarps / plan.splits, tokens = kTokenTiles * 8;
  const LaunchShape shape = {dim3(unsigned((pairs + pairs_in_block - 1) / pairs_in_block),
                                  unsigned((task.capacity + tokens - 1) / tokens)),
                             dim3(kTokensWarps * 32), bytes};
  return launch(target, shape, linear_tokens<format, kTokenTiles>, task, plan.splits, plan.direct);
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
  const size_t ring =
      size_t(kTokensWarps) * size_t(tokens_stages(format)) * kTokensRowTiles * fragment_unit_bytes(format);
  const size_t sums =
      size_t(kTokensWarps) * kTokensRowTiles * size_t(plan.token_tiles) * kTileFloats * sizeof(float);
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
