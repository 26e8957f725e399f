#pragma once

#include <algorithm>
#include <cstring>

#include "kernels/numerics/exp.h"
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
      weigh(block);
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
    return collect_if(ids, [&](Block& block) {
      place(block);
      return [&block, bucket](int32_t i, int32_t) { return block.places[i] == bucket; };
    });
  }

  /// The ids that weigh at least `least`, and `best`.
  int32_t collect_heavy(double least, int32_t best, int32_t* ids) const {
    return collect_if(ids, [&](Block& block) {
      weigh(block);
      return [&block, least, best](int32_t i, int32_t id) { return block.values[i] >= least || id == best; };
    });
  }

 private:
  typedef float FloatVector __attribute__((vector_size(16)));
  typedef int32_t IntVector __attribute__((vector_size(16)));

  /// Tokens that are looked at together.
  static constexpr int32_t kBlock = 64;
  struct Block {
    alignas(16) float values[kBlock];
    alignas(16) int32_t places[kBlock];
  };

  /// Calls body(lanes, i) for the values of a block, four at a time, and stores the lanes back.
  template <typename Body>
  static void for_lanes(Block& block, Body body) {
    for (int32_t i = 0; i < kBlock; i += 4) {
      FloatVector lanes;
      std::memcpy(&lanes, block.values + i, sizeof lanes);
      body(lanes, i);
      std::memcpy(block.values + i, &lanes, sizeof lanes);
    }
  }

  /// Values become (score - largest) / temperature, 0 for scores that tie with the largest, infinite ones too.
  /// @return how many there are
  int32_t distances(int32_t first, Block& block) const {
    const int32_t count = std::min(kBlock, scores_.vocabulary - first);
    if (scores_.seen == nullptr) {
      std::copy(scores_.logits + first, scores_.logits + first + count, block.values);
    } else {
      for (int32_t i = 0; i < count; ++i) block.values[i] = scores_(first + i);
    }
    std::fill(block.values + count, block.values + kBlock, 0.0f);
    const FloatVector largest = FloatVector{} + largest_;
    const FloatVector lowest = FloatVector{} - std::numeric_limits<float>::infinity();
    for_lanes(block, [&](FloatVector& score, int32_t) {
      score = score == score ? score : lowest;
      score = score == largest ? FloatVector{} : (score - largest) / temperature_;
    });
    return count;
  }

  /// Places are buckets of a thirty-second of a nat; what weighs less than e to the -32 shares the last.
  static void place(Block& block) {
    for_lanes(block, [&](FloatVector& distance, int32_t i) {
      const FloatVector last = FloatVector{} + float(kCount - 1);
      const FloatVector scaled = distance * -32.0f;
      const IntVector places = __builtin_convertvector(scaled < last ? scaled : last, IntVector);
      std::memcpy(block.places + i, &places, sizeof places);
    });
  }

  /// Values become weights.
  static void weigh(Block& block) {
    for_lanes(block, [](FloatVector& lanes, int32_t) { exp_lanes<FloatVector, IntVector>(lanes); });
  }

  template <typename Prepare>
  int32_t collect_if(int32_t* ids, Prepare prepare) const {
    Block block;
    int32_t found = 0;
    for (int32_t first = 0; first < scores_.vocabulary; first += kBlock) {
      const int32_t count = distances(first, block);
      const auto wanted = prepare(block);
      for (int32_t i = 0; i < count; ++i) {
        ids[found] = first + i;
        found += wanted(i, first + i);
      }
    }
    return found;
  }

  const Scores& scores_;
  const float largest_;
  const float temperature_;
  double total_ = 0;
  double mass_[kCount];
};

}  // namespace nibblet
