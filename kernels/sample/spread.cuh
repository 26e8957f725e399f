#pragma once

#include "kernels/sample/select.cuh"

namespace nibblet {

/// The scores that matter to a choice, in kBins steps down from the best: a better score never has a later bin.
struct BinRange {
  float largest;
  uint32_t lowest;  ///< TokenOrder::of_score
  float scale;

  /// @param total  the sum of all weights
  __device__ BinRange(const TokenOrder& order, uint64_t best, const Sampling& sampling, float uniform,
                      int32_t vocabulary, double total) {
    largest = order.score(best);
    // As on the CPU: the walk cannot come to tokens that would together fit into what it leaves. Tokens of no mass do
    // not change it either, and with top-k the whole is not known yet.
    double least = 0;
    if (sampling.top_k <= 0 || sampling.top_k >= vocabulary) {
      const bool nucleus = sampling.top_p < 1;
      least = sampling.min_p;
      if (nucleus || !(least > 0)) {
        const double reach = nucleus ? fmax(double(sampling.top_p), 0.0) : double(uniform);
        least = 0.999 * (1 - reach) * total / vocabulary;
      }
    }
    least = fmin(fmax(least, 0.5 / kMassUnits), 1.0);
    // The score that weighs `least`, and somewhat below, so that what rounds up to it is held.
    const double depth = double(sampling.temperature) * (1.00001 * double(logf(float(least))) - 0.00001);
    lowest = min(TokenOrder::of_score(float(double(largest) + depth)), order.score_bits(best));
    scale = float(kBins) / (largest - TokenOrder::score_of(lowest));
  }

  __device__ int bin(float score) const {
    return score == largest ? 0 : int(fminf((largest - score) * scale, float(kBins - 1)));
  }
};

/// Sorts the tokens of a tile that are in the range by bin, and adds them to the histogram of the row: the work of a block.
/// @param logits  loaded at first_group(first)
__device__ inline void sort_tile(const Scores& scores, const BinRange& range, const Sampling& sampling,
                                 int32_t first, const TileLogits& logits, const RowWorkspace& workspace) {
  SelectShared& shared = select_shared();
  constexpr uint32_t kNone = 0xffffffffu;
  constexpr int kEach = kTile / kSampleThreads;
  const int own = int(threadIdx.x);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float (&values)[4] = logits.values[i];
    *reinterpret_cast<float4*>(&shared.tile[4 * own + i * kHalfTile]) =
        make_float4(values[0], values[1], values[2], values[3]);
  }
  clear_bins();
  uint32_t heavy = 0;
#pragma unroll 2
  for (int at = own; at < kTile; at += kSampleThreads) {
    const int32_t id = first + at;
    uint32_t place = kNone;
    if (id < scores.vocabulary) {
      const float score = scores.penalised(id, Scores::defined(shared.tile[at]));
      if (TokenOrder::of_score(score) >= range.lowest) {
        const float weight = relative_weight(score, range.largest, sampling.temperature);
        const int bin = range.bin(score);
        heavy += weight >= sampling.min_p ? 1 : 0;
        place = uint32_t(bin) << 16 | add_to_bin(bin, mass_of(weight));
      }
    }
    shared.tile[at] = __uint_as_float(place);
  }
  if (sampling.min_p > 0) {
    heavy = __reduce_add_sync(0xffffffffu, heavy);
    if (own % 32 == 0 && heavy > 0) atomicAdd(&workspace.histogram->heavy, heavy);
  }
  __syncthreads();

  ThreadBins bins;
  bins.take_shared();
  bins.scan();
  uint32_t offsets[kThreadBins];
#pragma unroll
  for (int i = 0; i < kThreadBins; ++i) {
    const int bin = ThreadBins::first_bin() + i;
    offsets[i] = i == 0 ? bins.count_before : offsets[i - 1] + bins.count[i - 1];
    shared.count[bin] = offsets[i];
    if (bins.count[i] == 0) continue;
    atomicAdd(&workspace.histogram->count[bin], bins.count[i]);
    if (bins.mass[i] > 0) {
      atomicAdd(reinterpret_cast<unsigned long long*>(&workspace.histogram->mass[bin]),
                static_cast<unsigned long long>(bins.mass[i]));
    }
  }
  const int tile = first / kTile;
  uint16_t* tile_offsets = workspace.tile_offsets + tile * kTileOffsets;
  *reinterpret_cast<uint2*>(tile_offsets + ThreadBins::first_bin()) =
      make_uint2(offsets[0] | offsets[1] << 16, offsets[2] | offsets[3] << 16);
  if (threadIdx.x == 0) tile_offsets[kBins] = uint16_t(bins.total_count);
  uint32_t places[kEach];
#pragma unroll
  for (int i = 0; i < kEach; ++i) places[i] = __float_as_uint(shared.tile[own + i * kSampleThreads]);
  // Offsets are there, and places are read, before the list takes their room.
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    if (places[i] == kNone) continue;
    const uint32_t at = shared.count[places[i] >> 16] + (places[i] & 0xffffu);
    shared.list[at] = uint16_t(own + i * kSampleThreads);
  }
  __syncthreads();
  constexpr int kAtOnce = sizeof(uint4) / sizeof(uint16_t);
  uint4* sorted = reinterpret_cast<uint4*>(workspace.tile_tokens + tile * kTile);
  for (int at = own; at * kAtOnce < int(bins.total_count); at += kSampleThreads)
    sorted[at] = shared.list_words[at];
  __syncthreads();
}

/// The tokens of one bin of a row whose tiles are sorted.
struct BinItems {
  Scores scores;
  TokenOrder order;
  const uint16_t* tile_tokens;
  const uint16_t* tile_offsets;
  int32_t tiles;
  int32_t bin;

  /// visit(number) for every token whose number is at least `low`.
  template <class Visit>
  __device__ void for_each(uint64_t low, Visit visit) const {
    // Half a warp a tile: all tiles of a common vocabulary at once.
    constexpr int kLanes = 16;
    for (int32_t tile = int32_t(threadIdx.x) / kLanes; tile < tiles; tile += kSampleThreads / kLanes) {
      const uint16_t* offsets = tile_offsets + tile * kTileOffsets + bin;
      const int last = offsets[1];
      for (int i = offsets[0] + int(threadIdx.x) % kLanes; i < last; i += kLanes) {
        const int32_t id = tile * kTile + tile_tokens[tile * kTile + i];
        const uint64_t number = order(scores(id), id);
        if (number >= low) visit(number);
      }
    }
  }
};

/// Finds in a row whose tiles are sorted. The work of a block.
class SpreadFinder {
 public:
  __device__ SpreadFinder(const Scores& scores, const TokenOrder& order, const RelativeWeight& weight,
                          const RowWorkspace& workspace, int32_t tiles)
      : items_{scores, order, workspace.tile_tokens, workspace.tile_offsets, tiles, 0},
        weight_(weight),
        heavy_(workspace.histogram->heavy) {
    const int first = ThreadBins::first_bin();
    const uint4 counts = *reinterpret_cast<const uint4*>(&workspace.histogram->count[first]);
    bins_.count[0] = counts.x, bins_.count[1] = counts.y, bins_.count[2] = counts.z,
    bins_.count[3] = counts.w;
#pragma unroll
    for (int i = 0; i < kThreadBins; ++i) bins_.mass[i] = workspace.histogram->mass[first + i];
    __syncthreads();
    bins_.scan();
  }

  /// As select().
  __device__ Cut find(bool by_mass, uint64_t goal) const {
    goal = bins_.locate(by_mass, goal > 0 ? goal : 1);
    const auto bin = select_shared().bin;
    goal -= by_mass ? bin.mass_before : bin.count_before;
    BinItems items = items_;
    items.bin = bin.index;
    Cut cut;
    if (bin.count <= kGathered) {
      gather(items, weight_, 0, ~uint64_t{0});
      Ranked ranked;
      ranked.rank();
      cut = ranked.pick(by_mass, goal);
    } else {
      cut = select_in(items, by_mass, goal);
    }
    cut.count += bin.count_before;
    cut.mass += bin.mass_before;
    return cut;
  }

  __device__ uint32_t heavy() const { return heavy_; }

 private:
  /// select() over the numbers that there are: a bin can be narrow.
  __device__ Cut select_in(const BinItems& items, bool by_mass, uint64_t goal) const {
    SelectShared& shared = select_shared();
    if (threadIdx.x == 0) shared.lowest = ~0ull, shared.highest = 0;
    __syncthreads();
    unsigned long long lowest = ~0ull, highest = 0;
    items.for_each(0, [&](uint64_t number) {
      lowest = number < lowest ? number : lowest;
      highest = number > highest ? number : highest;
    });
    if (highest > 0) {
      atomicMin(&shared.lowest, lowest);
      atomicMax(&shared.highest, highest);
    }
    __syncthreads();
    lowest = shared.lowest;
    highest = shared.highest;
    return select(items, weight_, lowest, highest, by_mass, goal);
  }

  BinItems items_;
  RelativeWeight weight_;
  uint32_t heavy_;
  ThreadBins bins_;
};

}  // namespace nibblet
