#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernels/cuda/launch.h"
#include "kernels/sample/sample.h"
#include "kernels/sample/score.h"

namespace nibblet {

constexpr int kSampleThreads = 512;
constexpr int kSampleWarps = kSampleThreads / 32;
/// Tokens that a warp takes at once, four a lane. The best of each is kept, so that top-k can skip most of them.
constexpr int kGroup = 128;
/// Tokens that a block takes at once: two loads of each thread are under way.
constexpr int kHalfTile = kGroup * kSampleWarps;
constexpr int kTile = 2 * kHalfTile;
/// 4096 groups, 128 tiles, and sums of weights that fit into 64 bits (select.cuh).
constexpr int32_t kMostVocabulary = 1 << 19;
constexpr int kMostGroups = kMostVocabulary / kGroup;

/// What tokens are sorted into. Threads have four each.
constexpr int kBins = 2048;
constexpr int kBinBits = 11;
constexpr int kThreadBins = kBins / kSampleThreads;
static_assert(kThreadBins == 4);
/// Where each bin of a tile begins, where the last ends, and room that keeps the next one aligned to 16 bytes.
constexpr int kTileOffsets = kBins + 8;

/// What a row needs after the survey.
enum class RowMode : uint32_t {
  kNone,    ///< no such row
  kIdle,    ///< its slot is not active
  kBlock,   ///< one block picks the token: greedy, forced, or of few
  kSpread,  ///< all blocks sort tokens first
};

struct RowPlan {
  RowMode mode;
  uint32_t forced;
  float uniform;
  Slot slot;  ///< started
  Sequence sequence;
  Sampling sampling;
  const int32_t* lists;
};

/// What one block reports of its part of a row.
struct PartSummary {
  uint64_t best;      ///< TokenOrder number of its best token
  double sum;         ///< of the weights relative to it
  double raw_sum;     ///< of exp(logit - raw_largest)
  float raw_largest;  ///< of its raw logits
  float reserved;
};

/// How many tokens of a row fell into each bin, and what they weigh together.
struct RowHistogram {
  uint64_t mass[kBins];
  uint32_t count[kBins];
  uint32_t heavy;  ///< tokens that min-p keeps
  uint32_t reserved[7];
};

/// How the rows are shared out to blocks, and the workspace: for each row its plan, the summaries of its parts, the
/// histogram, the best TokenOrder::of_score of each group (of the scores and, for rows with penalties, of the raw
/// logits), and for each tile its tokens by bin.
struct SampleLayout {
  int32_t part_tokens;
  int32_t parts;
  int32_t groups;
  int32_t tiles;
  size_t row_bytes;
};

constexpr size_t aligned_bytes(size_t bytes) { return (bytes + 31) / 32 * 32; }

inline SampleLayout sample_layout(int32_t vocabulary, int32_t capacity, int multiprocessors) {
  SampleLayout layout{};
  layout.tiles = (vocabulary + kTile - 1) / kTile;
  const int32_t wanted = std::max(1, std::min(layout.tiles, 4 * multiprocessors / capacity));
  const int32_t part_tiles = (layout.tiles + wanted - 1) / wanted;
  layout.part_tokens = part_tiles * kTile;
  layout.parts = (layout.tiles + part_tiles - 1) / part_tiles;
  layout.groups = (vocabulary + kGroup - 1) / kGroup;
  layout.row_bytes = aligned_bytes(sizeof(RowPlan)) + size_t(layout.parts) * sizeof(PartSummary) +
                     sizeof(RowHistogram) + aligned_bytes(size_t(layout.groups) * 2 * sizeof(uint32_t)) +
                     aligned_bytes(size_t(layout.tiles) * (kTile + kTileOffsets) * sizeof(uint16_t));
  return layout;
}

/// The workspace of one row.
struct RowWorkspace {
  RowPlan* plan;
  PartSummary* parts;
  RowHistogram* histogram;
  uint32_t* group_best;
  uint32_t* raw_group_best;
  uint16_t* tile_tokens;   ///< [tiles, kTile]: offsets in the tile, ordered by bin
  uint16_t* tile_offsets;  ///< [tiles, kTileOffsets]

  __device__ RowWorkspace(void* workspace, const SampleLayout& layout, int32_t row) {
    uint8_t* at = static_cast<uint8_t*>(workspace) + size_t(row) * layout.row_bytes;
    plan = reinterpret_cast<RowPlan*>(at);
    at += aligned_bytes(sizeof(RowPlan));
    parts = reinterpret_cast<PartSummary*>(at);
    at += size_t(layout.parts) * sizeof(PartSummary);
    histogram = reinterpret_cast<RowHistogram*>(at);
    at += sizeof(RowHistogram);
    group_best = reinterpret_cast<uint32_t*>(at);
    raw_group_best = group_best + layout.groups;
    at += aligned_bytes(size_t(layout.groups) * 2 * sizeof(uint32_t));
    tile_tokens = reinterpret_cast<uint16_t*>(at);
    tile_offsets = tile_tokens + size_t(layout.tiles) * kTile;
  }
};

static_assert(sizeof(PartSummary) % 32 == 0 && sizeof(RowHistogram) % 32 == 0);

/// Four logits of a row from `id` on, as they are. @return how many of them there are
__device__ __forceinline__ int load_logits(const float* logits, int32_t vocabulary, int32_t id,
                                           float (&values)[4]) {
  const int count = min(vocabulary - id, 4);
  if (vocabulary % 4 == 0) {
    if (count > 0) {
      const float4 four = *reinterpret_cast<const float4*>(logits + id);
      values[0] = four.x, values[1] = four.y, values[2] = four.z, values[3] = four.w;
    }
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i < count) values[i] = logits[id + i];
    }
  }
  return count;
}

/// What a thread takes of the logits of one tile, loaded all at once.
struct TileLogits {
  float values[2][4] = {};
  int count[2];

  /// @param group  the first token of its warp
  __device__ void load(const float* logits, int32_t vocabulary, int32_t group) {
#pragma unroll
    for (int i = 0; i < 2; ++i)
      count[i] =
          load_logits(logits, vocabulary, group + i * kHalfTile + 4 * int(threadIdx.x % 32), values[i]);
  }
};

/// Where the first group of a warp begins, in a tile that begins at `first`.
__device__ __forceinline__ int32_t first_group(int32_t first) {
  return first + int32_t(threadIdx.x) / 32 * kGroup;
}

}  // namespace nibblet
