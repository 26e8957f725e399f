#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

#include "kernels/step.h"

/// What sampling should choose from, worked out in float64 by sorting the whole vocabulary.
namespace nibblet::test {

/// Scores as the header defines them, in float64.
inline std::vector<double> penalised(const std::vector<float>& logits, const Sampling& s,
                                     const std::vector<uint8_t>& seen, const std::vector<uint32_t>& counts) {
  std::vector<double> scores(logits.begin(), logits.end());
  for (size_t i = 0; i < scores.size() && !seen.empty(); ++i) {
    if (seen[i]) scores[i] = scores[i] > 0 ? scores[i] / s.repetition : scores[i] * s.repetition;
    if (counts[i]) scores[i] -= double(s.frequency) * counts[i] + s.presence;
  }
  return scores;
}

struct Distribution {
  std::vector<int32_t> ids;  ///< kept tokens, most likely first
  std::vector<double> probabilities;
  bool ambiguous = false;  ///< float32 may cut elsewhere
};

/// The kept tokens by a full sort, each truncation renormalising as the header says.
inline Distribution truncate(const std::vector<double>& scores, const Sampling& s) {
  Distribution d;
  d.ids.resize(scores.size());
  std::iota(d.ids.begin(), d.ids.end(), 0);
  std::stable_sort(d.ids.begin(), d.ids.end(), [&](int32_t a, int32_t b) { return scores[a] > scores[b]; });
  if (s.top_k > 0 && size_t(s.top_k) < d.ids.size()) d.ids.resize(s.top_k);
  for (const int32_t id : d.ids)
    d.probabilities.push_back(std::exp((scores[id] - scores[d.ids[0]]) / s.temperature));
  const auto cut = [&](size_t count) {
    d.ids.resize(count);
    d.probabilities.resize(count);
    const double sum = std::accumulate(d.probabilities.begin(), d.probabilities.end(), 0.0);
    for (double& p : d.probabilities) p /= sum;
  };
  cut(d.ids.size());
  if (s.top_p < 1) {
    double mass = 0;
    size_t count = 0;
    while (count < d.ids.size()) {
      mass += d.probabilities[count++];
      d.ambiguous |= std::fabs(mass - s.top_p) < 1e-6;
      if (mass >= s.top_p) break;
    }
    cut(count);
  }
  if (s.min_p > 0) {
    size_t count = 0;
    const double least = s.min_p * d.probabilities[0];
    for (const double p : d.probabilities) {
      d.ambiguous |= std::fabs(p - least) < 1e-6 * least;
      if (p >= least) ++count;
    }
    cut(std::max<size_t>(count, 1));
  }
  return d;
}

/// @return the token of a uniform number, -1 where rounding may decide
inline int32_t walk(const Distribution& d, double uniform) {
  double mass = 0;
  for (size_t i = 0; i < d.ids.size(); ++i) {
    mass += d.probabilities[i];
    if (std::fabs(mass - uniform) < 1e-6 && i + 1 < d.ids.size()) return -1;
    if (mass > uniform) return d.ids[i];
  }
  return d.ids.back();
}

}  // namespace nibblet::test
