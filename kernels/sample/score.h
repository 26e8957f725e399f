#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "kernels/numerics/host_device.h"
#include "kernels/step.h"

namespace nibblet {

/// The rounded product: device code would fuse it with the addition that follows, and rank tokens otherwise than the CPU.
NIBBLET_HD inline float rounded_product(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}

/// The penalised logit of every token of one row, computed on demand: the raw logits stay as they are, since log
/// probabilities need them after the choice. NaN reads as -infinity, so it never wins.
struct Scores {
  const float* logits;
  int32_t vocabulary;
  const uint8_t* seen;     ///< null when the row has no penalties
  const uint32_t* counts;  ///< null together with seen
  float repetition;
  float presence;
  float frequency;

  NIBBLET_HD static float defined(float value) {
    return std::isnan(value) ? -std::numeric_limits<float>::infinity() : value;
  }
  NIBBLET_HD float raw(int32_t id) const { return defined(logits[id]); }
  NIBBLET_HD float operator()(int32_t id) const { return penalised(id, raw(id)); }

  /// The score of a token whose raw logit is `value`.
  NIBBLET_HD float penalised(int32_t id, float value) const {
    if (seen == nullptr || seen[id] == 0) return value;
    value = value > 0 ? value / repetition : rounded_product(value, repetition);
    const uint32_t count = counts[id];
    if (count > 0) value -= rounded_product(frequency, float(count)) + presence;
    return defined(value);
  }

  /// The order of the candidates: larger first, then the lower id.
  bool before(int32_t a, int32_t b) const {
    const float x = (*this)(a);
    const float y = (*this)(b);
    return x > y || (x == y && a < b);
  }
};

/// The largest score and its lowest id. Every score -infinity: id 0.
struct Largest {
  int32_t id;
  float score;
};

template <typename Score>
Largest find_largest(const Score& score, int32_t vocabulary) {
  Largest best = {0, score(0)};
  for (int32_t id = 1; id < vocabulary; ++id) {
    const float value = score(id);
    if (value > best.score) best = {id, value};
  }
  return best;
}

/// exp((score - largest) / temperature) for score ≤ largest. The difference comes first, so that a temperature near 0
/// cannot overflow, and infinite scores that tie with the largest weigh 1.
NIBBLET_HD inline float relative_weight(float score, float largest, float temperature) {
  return score == largest ? 1.0f : std::exp((score - largest) / temperature);
}

}  // namespace nibblet
