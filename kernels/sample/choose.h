#pragma once

#include "kernels/sample/score.h"

namespace nibblet {

/// Picks a token of `scores` as sample.h defines it: temperature, top-k, top-p, min-p, then `uniform` in [0, 1).
/// @param scratch  `vocabulary` ids
/// Weights are float32 exponentials relative to the largest score, their sums double. Dividing by a positive
/// temperature keeps the order of the scores, so candidates are ordered by the undivided ones.
int32_t choose_token(const Scores& scores, const Sampling& sampling, float uniform, int32_t* scratch);

}  // namespace nibblet
