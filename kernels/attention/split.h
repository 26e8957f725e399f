#pragma once

#include "kernels/attention/attention.h"

/// Attention of few tokens, where a sequence's rows of one kv head are one tile, by all workers: scores by pages, weights by
/// rows, sums by channels. Each key and value is packed and widened once (values are read once more, to see that they are
/// finite), where a worker that has some of the rows would pack all of them for itself. As no sum is cut, the bits are
/// those of a worker alone.
namespace nibblet {

/// Whether the step is such, long enough to gain by it, and args.scratch holds its scores.
bool attention_is_split(const AttentionArgs& args);

/// Phases 1 to 3 of attention, after the cache is appended to.
void attention_split(const AttentionArgs& args, int phase, int worker, int workers);

}  // namespace nibblet
