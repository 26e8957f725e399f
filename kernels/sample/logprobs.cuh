#pragma once

#include "kernels/sample/logprobs.h"
#include "kernels/sample/select.cuh"

namespace nibblet {

/// top_logprobs of logprobs.h: the work of a block. `tokens` are those of the raw logits. result is shared memory.
__device__ inline void top_logprobs(const TokenItems& tokens, const LogNormaliser& normaliser, int32_t count,
                                    Result& result) {
  const TokenOrder& order = tokens.order;
  count = min(max(count, 0), min(kTopLogprobs, tokens.scores.vocabulary));
  if (threadIdx.x == 0) result.top_count = count;
  if (count == 0) return;
  const uint64_t best = order.most(TokenOrder::of_score(normaliser.largest));
  const uint64_t low = bound_of_best(tokens, count, best);
  Selection<TokenItems, NoWeight> selection(tokens, {}, low, best, 1);
  selection.gather(selection.find(false, uint32_t(count)).token, best);
  const SelectShared& shared = select_shared();
  if (int(threadIdx.x) < count) {
    const uint64_t token = shared.token[threadIdx.x];
    int rank = 0;
    for (int i = 0; i < count; ++i) rank += shared.token[i] > token;
    result.top_ids[rank] = order.id(token);
    result.top_logprobs[rank] = normaliser.logprob(order.score(token));
  }
}

}  // namespace nibblet
