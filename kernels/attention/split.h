#pragma once

#include <algorithm>

#include "kernels/attention/attention.h"
#include "kernels/numerics/partition.h"

/// Attention of few tokens, a sequence's rows of one kv head in one tile, by all workers: scores by pages, weights by rows, sums by
/// channels. Each key and value is packed and widened once, where a worker that has some of the rows packs all of them for
/// itself; and as no sum is cut, the bits are those of a worker alone.
namespace nibblet {

/// Whether the step is such, and args.scratch holds its scores.
bool attention_is_split(const AttentionArgs& args);

/// Phases 1 to 3 of attention, after the cache is appended to.
void attention_split(const AttentionArgs& args, int phase, int worker, int workers);

/// Of `units` units of equal cost that begin at `start` of a total, those that begin inside a part.
inline Range units_of(Range part, int64_t start, int64_t cost, int64_t units) {
  const auto at = [&](int64_t place) {
    return std::min((std::max<int64_t>(place - start, 0) + cost - 1) / cost, units);
  };
  return {at(part.first), at(part.last)};
}

}  // namespace nibblet
