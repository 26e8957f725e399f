#include "kernels/sample/logprobs.h"

#include <algorithm>

namespace nibblet {

LogNormaliser log_normaliser(const Scores& scores) {
  const Largest best = find_largest([&](int32_t id) { return scores.raw(id); }, scores.vocabulary);
  double sum = 0;
  for (int32_t id = 0; id < scores.vocabulary; ++id) sum += relative_weight(scores.raw(id), best.score, 1);
  return {best.score, std::log(sum)};
}

void top_logprobs(const Scores& scores, const LogNormaliser& normaliser, int32_t count, Result& result) {
  count = std::clamp(count, 0, std::min(kTopLogprobs, scores.vocabulary));
  float values[kTopLogprobs];
  int32_t held = 0;
  for (int32_t id = 0; id < scores.vocabulary && count > 0; ++id) {
    const float logit = scores.raw(id);
    // Ids ascend, so a tie ranks behind what is held.
    if (held == count && !(logit > values[held - 1])) continue;
    int32_t rank = held == count ? held - 1 : held++;
    for (; rank > 0 && logit > values[rank - 1]; --rank) {
      values[rank] = values[rank - 1];
      result.top_ids[rank] = result.top_ids[rank - 1];
    }
    values[rank] = logit;
    result.top_ids[rank] = id;
  }
  result.top_count = held;
  for (int32_t rank = 0; rank < held; ++rank) result.top_logprobs[rank] = normaliser.logprob(values[rank]);
}

}  // namespace nibblet
