#include <algorithm>

#include "kernels/attention/kept.cuh"
#include "kernels/attention/launches.h"
#include "kernels/attention/merge.cuh"
#include "kernels/attention/walk.cuh"
#include "kernels/cuda/step.h"

namespace nibblet {
namespace {

using namespace attention_device;

/// Parts of a context begin at multiples of this many positions.
constexpr int32_t kChunk = 128;
/// Partials that one block merges at once; more are merged in groups of kGroup first.
constexpr int32_t kDirect = 16;
constexpr int32_t kGroup = 12;
/// Positions of a part up to which fewer parts are better than a second merge.
constexpr int32_t kDirectChunk = 512;
/// Positions of the step that a block converts for itself.
constexpr int32_t kMostFresh = 64;

/// How a launch is cut. A unit is a token, a kv head and 16 of the query heads that share it.
struct Cut {
  int32_t splits;     ///< most parts of a context
  int32_t row_tiles;  ///< units of a token and kv head
  bool appended;

  __host__ __device__ int32_t groups() const { return splits > kDirect ? (splits + kGroup - 1) / kGroup : 0; }
  /// Of a unit: one a split, then one a group.
  __host__ __device__ int32_t partials() const { return splits > 1 ? splits + groups() : 0; }
  /// Of a unit: one for all, then one a group.
  __host__ __device__ int32_t counters() const { return splits > 1 ? 1 + groups() : 0; }
};

template <DType kCache>
union Shared {
  FreshRow<kCache> fresh[kMostFresh];
  WarpSums warps;
};

/// Writes the outputs of 16 rows, of which those from `rows` on do not exist.
__device__ __forceinline__ void write_rows(const AttentionArgs& args, const Own& own, float scale,
                                           int32_t token, int32_t head, int32_t rows) {
  const int lane = int(threadIdx.x) % 32;
  const int warp = int(threadIdx.x) / 32;
  uint16_t* const y = static_cast<uint16_t*>(args.y) + (size_t(token) * args.heads + head) * kHeadDim;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = lane / 4 + 8 * half;
    if (row >= rows) continue;
    // v_scale belongs to every value, and the sum is as linear in it.
    const float factor = scale / own.total[half];
#pragma unroll
    for (int i = 0; i < kOwnColumns; ++i) {
      uint16_t* const to = y + row * kHeadDim + lane % 4 * 32 + warp * kOwnColumns + i;
      to[0] = bf16_from_float((half == 0 ? own.sums[i].x : own.sums[i].z) * factor);
      to[16] = bf16_from_float((half == 0 ? own.sums[i].y : own.sums[i].w) * factor);
    }
  }
}

/// Positions of a part of a context, a multiple of kChunk.
__device__ __forceinline__ int32_t chunk_of(int32_t length, int32_t splits) {
  int32_t share = (length + splits - 1) / splits;
  if (length <= kDirect * kDirectChunk) share = max(share, (length + kDirect - 1) / kDirect);
  return (share + kChunk - 1) / kChunk * kChunk;
}

/// Block (x, token): split x % splits of unit x / splits of the token. Parts of the context that no position falls into
/// end at once; the last part to arrive merges all. What earlier steps cached is on its way before the wait (cuda.h says
/// why that may be).
template <DType kCache>
__global__ void __launch_bounds__(kAttendThreads, 1)
    attend_kernel(const AttentionArgs args, const Cut cut, Partial* partials, uint32_t* counters) {
  const int32_t token = int32_t(blockIdx.y);
  const int32_t split = int32_t(blockIdx.x) % cut.splits;
  const int32_t unit = int32_t(blockIdx.x) / cut.splits;
  const int32_t row_tile = unit % cut.row_tiles;
  const int32_t kv_head = unit / cut.row_tiles;
  const int32_t group = args.heads / args.kv_heads;
  const int32_t thread = int32_t(threadIdx.x);
  const int lane = thread % 32;
  Shared<kCache>& shared = *dynamic_shared<Shared<kCache>>();
  __shared__ bool is_last;

  // append_cuda writes what is then read from the cache.
  if (cut.appended) grid_dependency_wait();
  const StepHead step = load_step(args.step);
  int32_t index = 0;
  Sequence sequence = {};
  bool live = false;
  if (token < step.tokens) {
    // A step of one token has one sequence: one trip to memory less.
    if (gridDim.y > 1) index = step.sequence_of[token];
    sequence = step.sequences[index];
    live = is_live(sequence, args.slots);
  }
  const int32_t position = sequence.position + token - sequence.first;
  const int32_t length = token < step.tokens ? position + 1 : 0;
  const int32_t chunk = chunk_of(length, cut.splits);
  const int32_t begin = split * chunk;
  const int32_t end = min(length, begin + chunk);
  // Room for the next kernel at once. The first part waits even if there is nothing: whoever waits for this kernel also
  // waits for those before it.
  if (split > 0 && begin >= end) return;
  const int32_t fresh_from = cut.appended ? length : sequence.position;
  const int32_t fresh_first = max(fresh_from, begin);
  const int32_t* const pages = step.pages + int64_t(index) * step.pages_per_sequence;
  CacheReader<kCache> reader(args, pages, kv_head, fresh_from, fresh_first, end, shared.fresh);
  Walk<kCache> walk(reader, begin, end, live);
  // Of one part the block that stores the token's own key and value.
  const bool stores = fresh_first < end && end == length && row_tile == 0;
  const int32_t own_page = stores ? pages[position / kPageTokens] : 0;
  grid_dependency_wait();
  if (begin >= end || !live) return;

  // Rows g and g + 8 of the tile are query heads.
  const int32_t head = kv_head * group + row_tile * kRows;
  const int32_t rows = min(kRows, group - row_tile * kRows);
  const uint16_t* const queries =
      static_cast<const uint16_t*>(args.qkv) + size_t(token) * qkv_row(args) + size_t(head) * kHeadDim;
  const auto row_of = [&](int32_t row) { return row < rows ? queries + row * kHeadDim : nullptr; };
  const Queries q = load_queries<kCache>(row_of(lane / 4), row_of(lane / 4 + 8), lane % 4);

  if (fresh_first < end) {
#pragma unroll 1
    for (int32_t i = thread; i < (end - fresh_first) * 2 * kHeadDim; i += kAttendThreads) {
      const int32_t row = i / (2 * kHeadDim);
      const CachePart part = CachePart(i / kHeadDim % 2);
      const size_t from =
          fresh_index(args, sequence.first + fresh_first + row - sequence.position, part, kv_head) +
          i % kHeadDim;
      const float value = read_element(args.qkv, DType::bf16, from) / cache_scale(args, part);
      write_element(shared.fresh[row][part], kCache, size_t(i % kHeadDim), value);
    }
    __syncthreads();
    constexpr int32_t kRowBytes = int32_t(sizeof shared.fresh[0][0]);
    // By the last warp, which has nothing else to do in short contexts.
#pragma unroll 1
    for (int32_t i = lane * 16; stores && thread >= kAttendThreads - 32 && i < 2 * kRowBytes; i += 32 * 16) {
      const CachePart part = CachePart(i / kRowBytes);
      const size_t row = ((size_t(own_page) * 2 + part) * args.kv_heads + kv_head) * kPageTokens +
                         size_t(position % kPageTokens);
      *reinterpret_cast<uint4*>(static_cast<uint8_t*>(args.cache) + row * kRowBytes + i % kRowBytes) =
          *reinterpret_cast<const uint4*>(&shared.fresh[end - fresh_first - 1][part][i % kRowBytes]);
    }
  }

  Running running;
  walk.attend(q, args.scale * cache_scale(args, kKey), running);
  // Not before: what the next kernels fetch ahead would stand in the way.
  grid_dependency_launch();
  constexpr int32_t kPositions = TileShape<kCache>::kPositions;
  const int32_t used = min(kAttendWarps, (end - begin + kPositions - 1) / kPositions);
  if (fresh_first < end) __syncthreads();
  Own own = merge_warps(running, used, shared.warps);

  const int32_t active = (length + chunk - 1) / chunk;
  if (active > 1) {
    const size_t place = size_t(token) * (gridDim.x / cut.splits) + unit;
    Partial* const parts = partials + place * cut.partials();
    uint32_t* const arrived = counters + place * cut.counters();
    Partial* from = parts;
    int32_t count = active;
    store_partial(own, parts + split);
    if (active > kDirect) {
      const int32_t part = split / kGroup;
      const int32_t members = min(kGroup, active - part * kGroup);
      if (!arrive_last(arrived + 1 + part, members, is_last)) return;
      own = merge_partials<kDirect>(parts + part * kGroup, members);
      from = parts + cut.splits;
      count = (active + kGroup - 1) / kGroup;
      store_partial(own, from + part);
    }
    if (!arrive_last(arrived, count, is_last)) return;
    own = merge_partials<kDirect>(from, count);
  }
  write_rows(args, own, cache_scale(args, kValue), token, head, rows);
}

Cut cut_for(const AttentionArgs& args, int32_t capacity, const CudaTarget& target) {
  Cut cut = {};
  const int32_t group = args.heads / args.kv_heads;
  cut.row_tiles = (group + kRows - 1) / kRows;
  const int64_t units = int64_t{capacity} * args.kv_heads * cut.row_tiles;
  cut.splits = units < target.multiprocessors ? int32_t(target.multiprocessors / units) : 1;
  // One block merges at most kDirect groups.
  cut.splits = std::min(cut.splits, kDirect * kGroup);
  return cut;
}

template <DType kCache>
cudaError_t launch_attend(const AttentionArgs& args, int32_t capacity, const Cut& cut, void* workspace,
                          void* counters, const CudaTarget& target) {
  const size_t shared = sizeof(Shared<kCache>);
  if (cudaError_t error = allow_shared_memory(attend_kernel<kCache>, shared); error != cudaSuccess)
    return error;
  const LaunchShape shape = {dim3(unsigned(args.kv_heads * cut.row_tiles * cut.splits), unsigned(capacity)),
                             dim3(kAttendThreads), shared};
  return launch(target, shape, attend_kernel<kCache>, args, cut, static_cast<Partial*>(workspace),
                static_cast<uint32_t*>(counters));
}

}  // namespace

cudaError_t attend_cuda(const AttentionArgs& args, int32_t capacity, bool appended, void* workspace,
                        void* counters, const CudaTarget& target) {
  if (!appended && capacity > kMostFresh) return cudaErrorInvalidValue;
  Cut cut = cut_for(args, capacity, target);
  cut.appended = appended;
  if (args.cache_type == DType::bf16) {
    return launch_attend<DType::bf16>(args, capacity, cut, workspace, counters, target);
  }
  return launch_attend<DType::e4m3>(args, capacity, cut, workspace, counters, target);
}

CudaScratch attend_cuda_scratch(const AttentionArgs& args, int32_t capacity, const CudaTarget& target) {
  const Cut cut = cut_for(args, capacity, target);
  const size_t units = size_t(capacity) * args.kv_heads * cut.row_tiles;
  return {units * cut.partials() * sizeof(Partial), units * cut.counters() * sizeof(uint32_t)};
}

}  // namespace nibblet
