#include <type_traits>

#include "kernels/attention/kept.cuh"
#include "kernels/attention/launches.h"
#include "kernels/attention/merge.cuh"

namespace nibblet {
namespace {

using namespace attention_device;

/// Parts of a context begin at multiples of this many positions.
constexpr int32_t kChunk = 128;
/// Partials that one block merges at once; more are merged in groups of kGroup first.
constexpr int32_t kDirect = 12;
constexpr int32_t kGroup = 8;
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

/// Keys and values of this step as the cache keeps them.
template <DType kCache>
using FreshRow = uint8_t[2][kHeadDim * (kCache == DType::e4m3 ? 1 : 2)];

template <DType kCache>
union Shared {
  FreshRow<kCache> fresh[kMostFresh];
  WarpSums warps;
};

/// A warp's view of the cache: the positions of one sequence and kv head.
template <DType kCache>
class CacheReader {
 public:
  __device__ __forceinline__ CacheReader(const AttentionArgs& args, const int32_t* pages, int32_t head,
                                         int32_t fresh_from, int32_t fresh_first, int32_t end,
                                         const FreshRow<kCache>* fresh)
      : cache_(static_cast<const uint8_t*>(args.cache)),
        pages_(pages),
        part_bytes_(size_t(args.kv_heads) * kPageTokens * kRowBytes),
        head_bytes_(size_t(head) * kPageTokens * kRowBytes),
        fresh_from_(fresh_from),
        fresh_first_(fresh_first),
        end_(end),
        fresh_(fresh) {}

  /// Asks for the numbers of the page that has `position` and of the 31 behind it; by all lanes.
  __device__ __forceinline__ void find_pages(int32_t position) {
    known_ = position / kPageTokens;
    const int32_t mine = known_ + int32_t(threadIdx.x) % 32;
    page_of_lane_ = mine * kPageTokens < end_ ? pages_[mine] : 0;
  }

  /// Goes to the tile that begins at `position`, behind what find_pages() was called with; by all lanes. Positions of a
  /// tile share a page.
  __device__ __forceinline__ void seek(int32_t position) {
    tile_ = position;
    if (position / kPageTokens >= known_ + 32) find_pages(position);
    const int32_t number = __shfl_sync(~0u, page_of_lane_, position / kPageTokens - known_);
    base_ = cache_ + size_t(number) * 2 * part_bytes_ + head_bytes_ + position % kPageTokens * kRowBytes;
  }

  /// fetch(position of the tile, byte of the row) for each piece of a lane's keys.
  template <class Fetch>
  static __device__ __forceinline__ void each(Keys<kCache>& keys, int g, int t, Fetch fetch) {
    using Shape = TileShape<kCache>;
#pragma unroll
    for (int j = 0; j < Shape::kKeyTiles; ++j) {
#pragma unroll
      for (int c = 0; c < Shape::kKeyPieces; ++c) keys.piece[j][c] = fetch(8 * j + g, (4 * c + t) * 16);
    }
  }
  template <class Fetch>
  static __device__ __forceinline__ void each(Values<kCache>& values, int g, int t, Fetch fetch) {
    using Shape = TileShape<kCache>;
#pragma unroll
    for (int h = 0; h < Shape::kValueSteps; ++h) {
#pragma unroll
      for (int r = 0; r < 4; ++r) {
#pragma unroll
        for (int c = 0; c < Shape::kValuePieces; ++c) {
          values.piece[h][r][c] =
              fetch(16 * h + 2 * t + r % 2 + r / 2 * 8, (Shape::kValuePieces * g + c) * 16);
        }
      }
    }
  }

  /// Keys or values of the tile; 0 beyond the end, where a page may hold anything.
  template <class Pieces>
  __device__ __forceinline__ void load(Pieces& pieces, int g, int t) const {
    constexpr CachePart part = std::is_same_v<Pieces, Keys<kCache>> ? kKey : kValue;
    const uint8_t* const from = base_ + size_t(part) * part_bytes_;
    if (tile_ + TileShape<kCache>::kPositions <= min(fresh_from_, end_)) {
      each(pieces, g, t, [&](int32_t position, int32_t byte) {
        return load_once(from + uint32_t(position * kRowBytes + byte));
      });
    } else {
      each(pieces, g, t, [&](int32_t offset, int32_t byte) -> uint4 {
        const int32_t position = tile_ + offset;
        if (position >= end_) return {0, 0, 0, 0};
        if (position < fresh_from_) return load_once(from + uint32_t(offset * kRowBytes + byte));
        return *reinterpret_cast<const uint4*>(&fresh_[position - fresh_first_][part][byte]);
      });
    }
  }

 private:
  static constexpr int32_t kRowBytes = kHeadDim * (kCache == DType::e4m3 ? 1 : 2);

  const uint8_t* cache_;
  const int32_t* pages_;
  size_t part_bytes_, head_bytes_;
  int32_t fresh_from_;   ///< positions from here on are those of the step
  int32_t fresh_first_;  ///< the one that fresh_[0] has
  int32_t end_;
  const FreshRow<kCache>* fresh_;
  const uint8_t* base_ = nullptr;
  int32_t tile_ = 0;
  int32_t known_ = 0;  ///< page_of_lane_ is of this page and the lane's number behind it
  int32_t page_of_lane_ = 0;
};

template <DType kCache, bool kNan>
__device__ __forceinline__ void add_tile_values(const float (&weights)[TileShape<kCache>::kKeyTiles][4],
                                                const Values<kCache>& values, Running& running) {
#pragma unroll
  for (int h = 0; h < TileShape<kCache>::kValueSteps; ++h) {
    add_values<kCache, kNan>(split_weights(weights[2 * h], weights[2 * h + 1]), values, h, running.sums);
  }
}

__device__ __forceinline__ bool any_nan(const Keys<DType::e4m3>& keys) {
  bool found = false;
#pragma unroll
  for (const auto& pieces : keys.piece) found |= has_nan(pieces[0]) || has_nan(pieces[1]);
  return __any_sync(~0u, found) != 0;
}
__device__ __forceinline__ bool any_nan(const Values<DType::e4m3>& values) {
  bool found = false;
#pragma unroll
  for (const auto& rows : values.piece) {
#pragma unroll
    for (const auto& pieces : rows) found |= has_nan(pieces[0]);
  }
  return __any_sync(~0u, found) != 0;
}
__device__ __forceinline__ bool any_nan(const Keys<DType::bf16>&) { return false; }
__device__ __forceinline__ bool any_nan(const Values<DType::bf16>&) { return false; }

/// Attends the 16 rows to every eighth tile from `begin` on, up to the reader's end.
template <DType kCache>
__device__ __forceinline__ void attend_tiles(const Queries& q, CacheReader<kCache>& reader, int32_t begin,
                                             int32_t end, float scale, Running& running) {
  using Shape = TileShape<kCache>;
  constexpr int32_t kStride = kAttendWarps * Shape::kPositions;
  const int lane = int(threadIdx.x) % 32;
  const int g = lane / 4;
  const int t = lane % 4;
  int32_t tile = begin + int32_t(threadIdx.x) / 32 * Shape::kPositions;
  if (tile >= end) return;
  Keys<kCache> keys;
  Values<kCache> values;
  reader.seek(tile);
  reader.load(keys, g, t);
  reader.load(values, g, t);
  while (true) {
    const int32_t next = tile + kStride;
    const bool more = next < end;
    float scores[Shape::kKeyTiles][4];
    if (any_nan(keys)) {
      multiply_keys<kCache, kCache == DType::e4m3>(q, keys, scores);
    } else {
      multiply_keys<kCache, false>(q, keys, scores);
    }
    // Registers are loaded again as soon as they were used: that hides half of the way to memory.
    if (more) {
      reader.seek(next);
      reader.load(keys, g, t);
    }
    weigh(scores, scale, end - tile, t, running);
    if (any_nan(values)) {
      add_tile_values<kCache, kCache == DType::e4m3>(scores, values, running);
    } else {
      add_tile_values<kCache, false>(scores, values, running);
    }
    if (!more) return;
    reader.load(values, g, t);
    tile = next;
  }
}

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

/// Block (x, token): split x % splits of unit x / splits of the token. Parts of the context that no position falls into
/// end at once; the last part to arrive merges all.
template <DType kCache>
__global__ void __launch_bounds__(kAttendThreads, 1)
    attend_kernel(const AttentionArgs args, const Cut cut, Partial* partials, uint32_t* counters) {
  grid_dependency_launch();
  const int32_t token = int32_t(blockIdx.y);
  const int32_t split = int32_t(blockIdx.x) % cut.splits;
  const int32_t unit = int32_t(blockIdx.x) / cut.splits;
  const int32_t row_tile = unit % cut.row_tiles;
  const int32_t kv_head = unit / cut.row_tiles;
  const int32_t group = args.heads / args.kv_heads;
  const int lane = int(threadIdx.x) % 32;
  Shared<kCache>& shared = *dynamic_shared<Shared<kCache>>();
  __shared__ bool is_last;
  grid_dependency_wait();

  const Step& step = *args.step;
  if (token >= step.tokens) return;
  // A step of one token has one sequence: one trip to memory less.
  const int32_t index = gridDim.y == 1 ? 0 : step.sequence_of[token];
  const Sequence sequence = step.sequences[index];
  const int32_t position = sequence.position + token - sequence.first;
  const int32_t length = position + 1;
  const int32_t share = (length + cut.splits - 1) / cut.splits;
  const int32_t chunk = (share + kChunk - 1) / kChunk * kChunk;
  const int32_t active = (length + chunk - 1) / chunk;
  if (split >= active) return;
  const bool live = is_live(sequence, args.slots);
  const int32_t begin = split * chunk;
  const int32_t end = min(length, begin + chunk);

  // Rows g and g + 8 of the tile are query heads.
  const int32_t head = kv_head * group + row_tile * kRows;
  const int32_t rows = min(kRows, group - row_tile * kRows);
  const uint16_t* const queries =
      static_cast<const uint16_t*>(args.qkv) + size_t(token) * qkv_row(args) + size_t(head) * kHeadDim;
  const auto row_of = [&](int32_t row) { return row < rows ? queries + row * kHeadDim : nullptr; };
  const Queries q = load_queries<kCache>(row_of(lane / 4), row_of(lane / 4 + 8), lane % 4);

  const int32_t fresh_from = cut.appended ? length : sequence.position;
  const int32_t fresh_first = max(fresh_from, begin);
  CacheReader<kCache> reader(args, step.pages + int64_t(index) * step.pages_per_sequence, kv_head, fresh_from,
                             fresh_first, end, shared.fresh);
  reader.find_pages(begin + int32_t(threadIdx.x) / 32 * TileShape<kCache>::kPositions);
  if (!live) return;
  if (fresh_first < end) {
    for (int32_t i = int32_t(threadIdx.x); i < (end - fresh_first) * 2 * kHeadDim; i += kAttendThreads) {
      const int32_t row = i / (2 * kHeadDim);
      const CachePart part = CachePart(i / kHeadDim % 2);
      const size_t from =
          fresh_index(args, sequence.first + fresh_first + row - sequence.position, part, kv_head) +
          i % kHeadDim;
      const float value = read_element(args.qkv, DType::bf16, from) / cache_scale(args, part);
      write_element(shared.fresh[row][part], kCache, size_t(i % kHeadDim), value);
      if (end == length && row == end - fresh_first - 1 && row_tile == 0) {
        write_element(args.cache, kCache, cache_index(args, index, position, part, kv_head) + i % kHeadDim,
                      value);
      }
    }
    __syncthreads();
  }

  Running running;
  attend_tiles<kCache>(q, reader, begin, end, args.scale * cache_scale(args, kKey), running);
  constexpr int32_t kPositions = TileShape<kCache>::kPositions;
  const int32_t used = min(kAttendWarps, (end - begin + kPositions - 1) / kPositions);
  if (fresh_first < end) __syncthreads();
  Own own = merge_warps(running, used, shared.warps);

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
      own = merge_partials(parts + part * kGroup, members);
      from = parts + cut.splits;
      count = (active + kGroup - 1) / kGroup;
      store_partial(own, from + part);
    }
    if (!arrive_last(arrived, count, is_last)) return;
    own = merge_partials(from, count);
  }
  write_rows(args, own, cache_scale(args, kValue), token, head, rows);
}

Cut cut_for(const AttentionArgs& args, int32_t capacity, const CudaTarget& target) {
  Cut cut = {};
  const int32_t group = args.heads / args.kv_heads;
  cut.row_tiles = (group + kRows - 1) / kRows;
  const int64_t units = int64_t{capacity} * args.kv_heads * cut.row_tiles;
  cut.splits = units < target.multiprocessors ? int32_t(target.multiprocessors / units) : 1;
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
