#pragma once

#include <algorithm>
#include <bit>

#include "kernels/sample/lanes.h"
#include "kernels/sample/score.h"

namespace nibblet {

/// The weights of a row's tokens, summed up by how far their scores lie below the largest: a better token never lies in a later
/// bucket. Two passes over the vocabulary then find any place in the order of the tokens, where sorting would take many.
class Buckets {
 public:
  static constexpr int32_t kCount = 1024;

  Buckets(const Scores& scores, float largest, float temperature)
      : scores_(scores), largest_(largest), temperature_(temperature) {}

  /// Sums up the vocabulary: before mass, total and find.
  void survey() {
    std::fill(mass_, mass_ + kCount, 0.0);
    Block block;
    for (int32_t first = 0; first < scores_.vocabulary; first += kBlock) {
      const int32_t count = distances(first, block);
      place(block);
      lanes_.weights(block.values);
      for (int32_t i = 0; i < count; ++i) mass_[block.places[i]] += block.values[i];
    }
    total_ = 0;
    for (const double mass : mass_) total_ += mass;
  }

  double total() const { return total_; }

  /// The first bucket at which `reached` is true of the mass up to its end; otherwise the last that weighs anything.
  /// @param before  receives the mass before that bucket
  template <typename Reached>
  int32_t find(Reached reached, double& before) const {
    int32_t last = 0;
    double sum = before = 0;
    for (int32_t b = 0; b < kCount; ++b) {
      if (mass_[b] == 0) continue;
      last = b;
      before = sum;
      sum += mass_[b];
      if (reached(sum)) break;
    }
    return last;
  }

  /// The ids of a bucket, ascending. @return how many
  int32_t collect(int32_t bucket, int32_t* ids) const {
    Block block;
    int32_t found = 0;
    for (int32_t first = 0; first < scores_.vocabulary; first += kBlock) {
      const int32_t count = distances(first, block);
      place(block);
      uint64_t mask = lanes_.equal(block.places, bucket);
      if (count < kBlock) mask &= (uint64_t{1} << count) - 1;
      for (; mask != 0; mask &= mask - 1) ids[found++] = first + std::countr_zero(mask);
    }
    return found;
  }

  /// The ids that weigh at least `least`, and `best`.
  int32_t collect_heavy(double least, int32_t best, int32_t* ids) const {
    Block block;
    int32_t found = 0;
    for (int32_t first = 0; first < scores_.vocabulary; first += kBlock) {
      const int32_t count = distances(first, block);
      lanes_.weights(block.values);
      for (int32_t i = 0; i < count; ++i) {
        ids[found] = first + i;
        found += block.values[i] >= least || first + i == best;
      }
    }
    return found;
  }

 private:
  static constexpr int32_t kBlock = kSampleBlock;
  struct Block {
    alignas(64) float values[kBlock];
    alignas(64) int32_t places[kBlock];
  };

  /// Values become distances from the largest score. @return how many there are
  int32_t distances(int32_t first, Block& block) const {
    const int32_t count = std::min(kBlock, scores_.vocabulary - first);
    if (scores_.seen == nullptr) {
      std::copy(scores_.logits + first, scores_.logits + first + count, block.values);
    } else {
      for (int32_t i = 0; i < count; ++i) block.values[i] = scores_(first + i);
    }
    std::fill(block.values + count, block.values + kBlock, 0.0f);
    lanes_.distances(block.values, largest_, temperature_);
    return count;
  }

  void place(Block& block) const { lanes_.places(block.values, block.places, kCount - 1); }

  const SampleLanes& lanes_ = sample_lanes();
  const Scores& scores_;
  const float largest_;
  const float temperature_;
  double total_ = 0;
  double mass_[kCount];
};

}  // namespace nibblet
