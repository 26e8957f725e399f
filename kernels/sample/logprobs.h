#pragma once

#include "kernels/sample/score.h"

namespace nibblet {

/// log(sum of exp(logit)) of a row, split so that infinite logits stay defined: log probability of a token =
/// (logit == largest ? 0 : logit - largest) - log_sum.
struct LogNormaliser {
  float largest;
  double log_sum;  ///< of exp(logit - largest): float32 terms, accumulated in double

  NIBBLET_HD float logprob(float logit) const {
    return float((logit == largest ? 0.0 : double(logit) - double(largest)) - log_sum);
  }
};

LogNormaliser log_normaliser(const Scores& scores);

/// The `count` largest raw logits (ties: lower id), with their log probabilities.
void top_logprobs(const Scores& scores, const LogNormaliser& normaliser, int32_t count, Result& result);

}  // namespace nibblet
