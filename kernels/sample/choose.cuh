#pragma once

#include "kernels/sample/select.cuh"

namespace nibblet {

/// choose_token of choose.h for temperatures above 0: the work of a block.
/// @param best   TokenOrder number of the best token, whose score is not -infinity
/// @param total  the sum of all weights
/// @return all threads get the token
__device__ inline int32_t choose_token(const TokenItems& tokens, const Sampling& sampling, float uniform,
                                       uint64_t best, double total) {
  const TokenOrder& order = tokens.order;
  const float largest = order.score(best);
  const int32_t vocabulary = tokens.scores.vocabulary;
  const bool nucleus = sampling.top_p < 1;
  const bool limited = sampling.top_k > 0 && sampling.top_k < vocabulary;
  uint64_t low;
  if (limited) {
    low = bound_of_best(tokens, sampling.top_k, best);
  } else {
    double least = sampling.min_p;
    if (nucleus || !(least > 0)) {
      const double reach = nucleus ? fmax(double(sampling.top_p), 0.0) : double(uniform);
      least = 0.999 * (1 - reach) * total / vocabulary;
    }
    // The score that weighs `least`, and somewhat below, so that what rounds up to it is held.
    const double depth = double(sampling.temperature) * (1.00001 * fmin(log(least), 0.0) - 0.00001);
    const uint32_t score = TokenOrder::of_score(float(double(largest) + depth));
    low = order.least(min(score, order.score_bits(best)));
  }

  Selection<TokenItems, RelativeWeight> selection(tokens, {order, largest, sampling.temperature}, low, best,
                                                  sampling.min_p);
  Cut kept = {0, uint32_t(vocabulary), 0};
  if (limited) {
    kept = selection.find(false, uint32_t(sampling.top_k));
    total = double(kept.mass) / kMassUnits;
  }
  if (nucleus) {
    const double goal = ceil(fmax(double(sampling.top_p), 0.0) * total * kMassUnits);
    const Cut cut = selection.find(true, uint64_t(goal));
    if (cut.count < kept.count) kept = cut;
  }
  if (sampling.min_p > 0) {
    const uint32_t heavy = selection.heavy();
    if (heavy < kept.count) kept = selection.find(false, heavy);
  }
  if (kept.mass > 0) total = double(kept.mass) / kMassUnits;
  // A uniform number is at most 1 - 2^-24, so that what is kept always reaches the goal.
  const Cut drawn = selection.find(true, uint64_t(floor(double(uniform) * total * kMassUnits)) + 1);
  return order.id(drawn.token);
}

}  // namespace nibblet
