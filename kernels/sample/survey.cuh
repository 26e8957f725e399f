#pragma once

#include "kernels/sample/layout.cuh"
#include "kernels/sample/order.cuh"

namespace nibblet {

/// The largest of some scores, and the sum of their weights relative to it. Combining is commutative.
struct WeightSum {
  float largest = -std::numeric_limits<float>::infinity();
  double sum = 0;

  __device__ void add(const float (&values)[4], int count, float temperature) {
    float most = largest;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i < count && values[i] > most) most = values[i];
    }
    raise(most, temperature);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i < count) sum += relative_weight(values[i], largest, temperature);
    }
  }

  __device__ void add(WeightSum other, float temperature) {
    const float most = fmaxf(largest, other.largest);
    raise(most, temperature);
    other.raise(most, temperature);
    sum += other.sum;
  }

  /// Adds those of the whole warp.
  __device__ void add_lanes(float temperature) {
    raise(TokenOrder::score_of(__reduce_max_sync(0xffffffffu, TokenOrder::of_score(largest))), temperature);
    for (int lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
  }

 private:
  __device__ void raise(float most, float temperature) {
    if (most == largest) return;
    sum *= relative_weight(largest, most, temperature);
    largest = most;
  }
};

/// What has to be known of a row.
struct SurveyTask {
  bool best;     ///< the best token
  bool weights;  ///< the sum of the weights
  bool groups;   ///< the best of each group, of the raw logits too
  bool raw;      ///< the sum of the exponentials of the raw logits
  float temperature;
};

struct SurveyShared {
  uint64_t best[kSampleWarps];
  WeightSum sum[kSampleWarps];
  WeightSum raw[kSampleWarps];
};

__device__ __forceinline__ uint64_t warp_max(uint64_t value) {
  const uint32_t upper = __reduce_max_sync(0xffffffffu, uint32_t(value >> 32));
  const uint32_t lower =
      __reduce_max_sync(0xffffffffu, uint32_t(value >> 32) == upper ? uint32_t(value) : 0u);
  return uint64_t{upper} << 32 | lower;
}

/// The best of the tokens that a thread takes of [first, last), where nothing else is asked for: the number of the token.
__device__ __forceinline__ uint64_t best_of_raw(const float* logits, int32_t vocabulary,
                                                const TokenOrder& order, int32_t first, int32_t last,
                                                TileLogits tile) {
  const int32_t own = first_group(first) + 4 * int32_t(threadIdx.x % 32);
  float most = -std::numeric_limits<float>::infinity();
  int32_t best = own;
  for (int32_t group = first_group(first); group < last; group += kTile) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      // Ids ascend, so a tie changes nothing, and neither does NaN.
      if (i % 4 >= tile.count[i / 4] || !(tile.values[i / 4][i % 4] > most)) continue;
      most = tile.values[i / 4][i % 4];
      best = group + i / 4 * kHalfTile + 4 * int32_t(threadIdx.x % 32) + i % 4;
    }
    if (group + kTile < last) tile.load(logits, vocabulary, group + kTile);
  }
  return own < last ? order(most, best) : 0;
}

/// Scores::penalised, not inlined: it is rare, and long.
__device__ __noinline__ inline float penalised_score(const uint8_t* seen, const uint32_t* counts,
                                                     float repetition, float presence, float frequency,
                                                     int32_t id, float value) {
  return Scores{nullptr, 0, seen, counts, repetition, presence, frequency}.penalised(id, value);
}

/// Summarises the tokens [first, last) of a row: the work of a block. Sums in a fixed order.
/// @param tile  loaded at first_group(first)
__device__ inline void survey(const Scores& scores, const TokenOrder& order, const SurveyTask& task,
                              int32_t first, int32_t last, const RowWorkspace& workspace, int part,
                              TileLogits tile, SurveyShared& shared) {
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
  const bool penalised = scores.seen != nullptr;
  uint64_t best = 0;
  WeightSum sum, raw;
  const bool simple = !task.weights && !task.groups && !task.raw && !penalised;
  if (simple) best = best_of_raw(scores.logits, scores.vocabulary, order, first, last, tile);
  const auto take = [&](int32_t group, float (&values)[4], int count) {
#pragma unroll
    for (int i = 0; i < 4; ++i) values[i] = Scores::defined(values[i]);
    if (task.raw) {
      raw.add(values, count, 1);
      if (penalised && task.groups) {
        uint32_t most = 0;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if (i < count) most = max(most, TokenOrder::of_score(values[i]));
        }
        most = __reduce_max_sync(0xffffffffu, most);
        if (lane == 0) workspace.raw_group_best[group / kGroup] = most;
      }
    }
    uint32_t most = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i >= count) continue;
      const int32_t id = group + 4 * lane + i;
      if (penalised)
        values[i] = penalised_score(scores.seen, scores.counts, scores.repetition, scores.presence,
                                    scores.frequency, id, values[i]);
      const uint64_t number = order(values[i], id);
      best = number > best ? number : best;
      most = max(most, TokenOrder::of_score(values[i]));
    }
    if (task.weights) sum.add(values, count, task.temperature);
    if (task.groups) {
      most = __reduce_max_sync(0xffffffffu, most);
      if (lane == 0) workspace.group_best[group / kGroup] = most;
    }
  };
#pragma unroll 1
  for (int32_t group = first_group(first); group < last && !simple; group += kTile) {
#pragma unroll 1
    for (int half = 0; half < 2; ++half) {
      if (group + half * kHalfTile >= last) break;
      float values[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) values[i] = half == 0 ? tile.values[0][i] : tile.values[1][i];
      take(group + half * kHalfTile, values, half == 0 ? tile.count[0] : tile.count[1]);
    }
    if (group + kTile < last) tile.load(scores.logits, scores.vocabulary, group + kTile);
  }

  best = warp_max(best);
  if (task.weights) sum.add_lanes(task.temperature);
  if (task.raw) raw.add_lanes(1);
  if (lane == 0) {
    shared.best[warp] = best;
    if (task.weights) shared.sum[warp] = sum;
    if (task.raw) shared.raw[warp] = raw;
  }
  __syncthreads();
  if (warp > 0) return;
  PartSummary summary{};
  summary.best = warp_max(lane < kSampleWarps ? shared.best[lane] : 0);
  if (task.weights) {
    sum = lane < kSampleWarps ? shared.sum[lane] : WeightSum{};
    sum.add_lanes(task.temperature);
    summary.sum = sum.sum;
  }
  if (task.raw) {
    raw = lane < kSampleWarps ? shared.raw[lane] : WeightSum{};
    raw.add_lanes(1);
    summary.raw_sum = raw.sum;
    summary.raw_largest = raw.largest;
  }
  if (lane == 0) workspace.parts[part] = summary;
}

/// A whole row: what the summaries of its parts come to.
struct RowSummary {
  uint64_t best;
  double sum;
};

/// The work of one warp; all lanes get the same. `task` as in the survey.
__device__ inline RowSummary combine_parts(const RowWorkspace& workspace, int parts, const TokenOrder& order,
                                           const SurveyTask& task) {
  uint64_t best = 0;
  WeightSum sum;
#pragma unroll 1
  for (int part = int(threadIdx.x) % 32; part < parts; part += 32) {
    const PartSummary& summary = workspace.parts[part];
    best = summary.best > best ? summary.best : best;
    if (task.weights) sum.add({order.score(summary.best), summary.sum}, task.temperature);
  }
  best = warp_max(best);
  if (task.weights) sum.add_lanes(task.temperature);
  return {best, sum.sum};
}

/// The same of the raw logits.
__device__ inline WeightSum combine_raw(const RowWorkspace& workspace, int parts) {
  WeightSum raw;
#pragma unroll 1
  for (int part = int(threadIdx.x) % 32; part < parts; part += 32)
    raw.add({workspace.parts[part].raw_largest, workspace.parts[part].raw_sum}, 1);
  raw.add_lanes(1);
  return raw;
}

}  // namespace nibblet
