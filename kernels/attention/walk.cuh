#pragma once

#include <type_traits>

#include "kernels/attention/attention.h"
#include "kernels/attention/merge.cuh"
#include "kernels/attention/tile.cuh"

/// How a warp goes through the cached positions of a sequence, a tile at a time.
namespace nibblet::attention_device {

/// Keys and values of this step as the cache keeps them.
template <DType kCache>
using FreshRow = uint8_t[2][kHeadDim * (kCache == DType::e4m3 ? 1 : 2)];

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

  template <class Pieces>
  static constexpr CachePart part_of() {
    return std::is_same_v<Pieces, Keys<kCache>> ? kKey : kValue;
  }

  /// visit(piece, position in the tile, byte of the row) for each piece of a lane.
  template <class Visit>
  static __device__ __forceinline__ void each(Keys<kCache>& keys, int g, int t, Visit visit) {
    using Shape = TileShape<kCache>;
#pragma unroll
    for (int j = 0; j < Shape::kKeyTiles; ++j) {
#pragma unroll
      for (int c = 0; c < Shape::kKeyPieces; ++c) visit(keys.piece[j][c], 8 * j + g, (4 * c + t) * 16);
    }
  }
  template <class Visit>
  static __device__ __forceinline__ void each(Values<kCache>& values, int g, int t, Visit visit) {
    using Shape = TileShape<kCache>;
#pragma unroll
    for (int h = 0; h < Shape::kValueSteps; ++h) {
#pragma unroll
      for (int r = 0; r < 4; ++r) {
#pragma unroll
        for (int c = 0; c < Shape::kValuePieces; ++c) {
          visit(values.piece[h][r][c], 16 * h + 2 * t + r % 2 + r / 2 * 8,
                (Shape::kValuePieces * g + c) * 16);
        }
      }
    }
  }

  /// Keys or values of the tile that the cache has; 0 in the place of others, where a page may hold anything.
  template <class Pieces>
  __device__ __forceinline__ void load(Pieces& pieces, int g, int t) const {
    const uint8_t* const from = base_ + size_t(part_of<Pieces>()) * part_bytes_;
    const int32_t cached = min(fresh_from_, end_) - tile_;
    each(pieces, g, t, [&](uint4& piece, int32_t offset, int32_t byte) {
      piece = {0, 0, 0, 0};
      if (offset < cached) piece = load_once(from + uint32_t(offset * kRowBytes + byte));
    });
  }

  /// Those of the step, where they are in the tile at `position`.
  template <class Pieces>
  __device__ __forceinline__ void add_fresh(Pieces& pieces, int32_t tile, int g, int t) const {
    each(pieces, g, t, [&](uint4& piece, int32_t offset, int32_t byte) {
      const int32_t position = tile + offset;
      if (position >= fresh_from_ && position < end_) {
        piece = *reinterpret_cast<const uint4*>(&fresh_[position - fresh_first_][part_of<Pieces>()][byte]);
      }
    });
  }
  __device__ __forceinline__ bool has_fresh(int32_t tile) const {
    return tile + TileShape<kCache>::kPositions > fresh_from_;
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

/// A warp's way through a part of a context: every eighth tile, the next kStages of them under way.
template <DType kCache>
class Walk {
 public:
  using Shape = TileShape<kCache>;
  static constexpr int32_t kStride = kAttendWarps * Shape::kPositions;

  /// Asks for the first tiles. Nothing of the step itself is read, and no cache where the sequence is not live.
  __device__ __forceinline__ Walk(CacheReader<kCache>& reader, int32_t begin, int32_t end, bool live)
      : reader_(reader), tile_(begin + int32_t(threadIdx.x) / 32 * Shape::kPositions), end_(end) {
    if (tile_ >= end) return;
    reader.find_pages(tile_);
    if (!live) return;
#pragma unroll
    for (int s = 0; s < Shape::kStages; ++s) {
      const int32_t tile = tile_ + s * kStride;
      if (tile >= end) break;
      reader.seek(tile);
      reader.load(keys_[s], g_, t_);
      reader.load(values_[s], g_, t_);
    }
  }

  /// Attends the 16 rows.
  __device__ __forceinline__ void attend(const Queries& q, float scale, Running& running) {
    for (; tile_ < end_; tile_ += Shape::kStages * kStride) {
#pragma unroll
      for (int s = 0; s < Shape::kStages; ++s) {
        const int32_t tile = tile_ + s * kStride;
        if (tile >= end_) return;
        if (reader_.has_fresh(tile)) {
          reader_.add_fresh(keys_[s], tile, g_, t_);
          reader_.add_fresh(values_[s], tile, g_, t_);
        }
        const int32_t next = tile + Shape::kStages * kStride;
        float scores[Shape::kKeyTiles][4];
        multiply_keys<kCache>(q, keys_[s], scores);
        spread_nan(keys_[s], scores);
        // Registers are loaded again as soon as they were used.
        if (next < end_) {
          reader_.seek(next);
          reader_.load(keys_[s], g_, t_);
        }
        weigh(scores, scale, end_ - tile, t_, running);
#pragma unroll
        for (int h = 0; h < Shape::kValueSteps; ++h) {
          add_values<kCache>(split_weights(scores[2 * h], scores[2 * h + 1]), values_[s], h, running.sums);
        }
        spread_nan(values_[s], running.sums);
        if (next < end_) reader_.load(values_[s], g_, t_);
      }
    }
  }

 private:
  CacheReader<kCache>& reader_;
  int32_t tile_;
  int32_t end_;
  int g_ = int(threadIdx.x) % 32 / 4;
  int t_ = int(threadIdx.x) % 4;
  Keys<kCache> keys_[Shape::kStages];
  Values<kCache> values_[Shape::kStages];
};

}  // namespace nibblet::attention_device
