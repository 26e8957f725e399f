#pragma once

#include "kernels/sample/few.cuh"
#include "kernels/sample/logprobs.h"

namespace nibblet {

/// top_logprobs of logprobs.h: the work of a block. `tokens` are those of the raw logits. result is shared memory.
__device__ inline void top_logprobs(const TokenItems& tokens, const LogNormaliser& normaliser, int32_t count,
                                    Result& result) {
  const TokenOrder& order = tokens.order;
  count = min(max(count, 0), min(kTopLogprobs, tokens.scores.vocabulary));
  if (threadIdx.x == 0) result.top_count = count;
  if (count == 0) return;
  const uint64_t best = order.most(TokenOrder::of_score(normaliser.largest));
  const Ranked ranked = rank_best(tokens, NoWeight{}, count, best);
  if (ranked.has && ranked.count <= uint32_t(count)) {
    result.top_ids[ranked.count - 1] = order.id(ranked.token);
    result.top_logprobs[ranked.count - 1] = normaliser.logprob(order.score(ranked.token));
  }
}

}  // namespace nibblet
