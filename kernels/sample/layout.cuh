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
/// Tokens that a warp takes at once, four a lane. The best of each is kept, so that later passes can skip most of them.
constexpr int kGroup = 128;
/// Tokens of one turn of a block.
constexpr int kTile = kGroup * kSampleWarps;
/// 4096 groups, and sums of weights that fit into 64 bits (select.cuh).
constexpr int32_t kMostVocabulary = 1 << 19;
constexpr int kMostGroups = kMostVocabulary / kGroup;

/// What one block reports of its part of a row.
struct PartSummary {
  uint64_t best;      ///< TokenOrder number of its best token
  double sum;         ///< of the weights relative to it
  double raw_sum;     ///< of exp(logit - raw_largest)
  float raw_largest;  ///< of its raw logits
  float reserved;
};

/// How the rows are shared out to blocks, and the workspace: for each row the summaries of its parts, then the best
/// TokenOrder::of_score of each group, of the scores and of the raw logits (written for rows with penalties alone).
struct SampleLayout {
  int32_t part_tokens;
  int32_t parts;
  int32_t groups;
  size_t row_bytes;
};

inline SampleLayout sample_layout(int32_t vocabulary, int32_t capacity, int multiprocessors) {
  // A turn of two tiles keeps two loads of each thread under way. No more blocks than the GPU holds at once: registers
  // leave room for two a multiprocessor.
  const int32_t turns = (vocabulary + 2 * kTile - 1) / (2 * kTile);
  const int32_t wanted = std::max(1, std::min(turns, 2 * multiprocessors / capacity));
  const int32_t part_turns = (turns + wanted - 1) / wanted;
  SampleLayout layout{};
  layout.part_tokens = part_turns * 2 * kTile;
  layout.parts = (turns + part_turns - 1) / part_turns;
  layout.groups = (vocabulary + kGroup - 1) / kGroup;
  layout.row_bytes =
      (size_t(layout.parts) * sizeof(PartSummary) + size_t(layout.groups) * 2 * 4 + 31) / 32 * 32;
  return layout;
}

/// The workspace of one row.
struct RowWorkspace {
  PartSummary* parts;
  uint32_t* group_best;
  uint32_t* raw_group_best;

  __device__ RowWorkspace(void* workspace, const SampleLayout& layout, int32_t row) {
    uint8_t* at = static_cast<uint8_t*>(workspace) + size_t(row) * layout.row_bytes;
    parts = reinterpret_cast<PartSummary*>(at);
    group_best = reinterpret_cast<uint32_t*>(at + size_t(layout.parts) * sizeof(PartSummary));
    raw_group_best = group_best + layout.groups;
  }
};

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

}  // namespace nibblet
