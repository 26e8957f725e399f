#include "kernels/sample/sample.h"

#include <algorithm>

#include "kernels/sample/choose.h"
#include "kernels/sample/logprobs.h"
#include "kernels/sample/row.h"

namespace nibblet {
namespace {

void mark_prompt(const SampleArgs& args, const Sequence& sequence) {
  if ((sequence.flags & kCount) == 0 || (sequence.flags & kDecode) != 0) return;
  uint8_t* seen = args.seen + int64_t(sequence.slot) * args.vocabulary;
  if (sequence.position == 0) {
    uint32_t* counts = args.counts + int64_t(sequence.slot) * args.vocabulary;
    std::fill(seen, seen + args.vocabulary, uint8_t{0});
    std::fill(counts, counts + args.vocabulary, 0u);
  }
  for (int32_t t = sequence.first; t < sequence.first + sequence.count; ++t) seen[args.step->ids[t]] = 1;
}

void sample_row(const SampleArgs& args, int32_t row, int32_t* scratch) {
  const Step& step = *args.step;
  const LogitsRow& place = step.rows[row];
  const Sequence& sequence = step.sequences[place.sequence];
  const Sampling& sampling = step.sampling[row];
  Slot& slot = args.slots[sequence.slot];
  Result& result = args.results[row];
  result = Result{};
  if (!is_live(sequence, args.slots)) return;
  slot = started(slot, sampling);

  const Scores scores = scores_of_row(args, row, sequence, sampling);
  const bool forced = is_forced(slot, sampling);
  int32_t token;
  if (forced) {
    token = step.lists[sampling.forced_first + slot.forced];
  } else {
    token = choose_token(scores, sampling, uniform_of_row(place, sequence, sampling), scratch);
  }

  result.token = token;
  result.flags = kSampled;
  if (sampling.logprobs >= 0) {
    const LogNormaliser normaliser = log_normaliser(scores);
    result.logprob = normaliser.logprob(scores.raw(token));
    top_logprobs(scores, normaliser, sampling.logprobs, result);
  }
  if ((sequence.flags & kCount) != 0) {
    const int64_t index = int64_t(sequence.slot) * args.vocabulary + token;
    args.seen[index] = 1;
    ++args.counts[index];
  }
  advance(slot, sampling, step.lists, token, forced, result);
}

}  // namespace

void sample(const SampleArgs& args, int phase, int worker, int workers) {
  const Step& step = *args.step;
  if (phase == 0) {
    for (int32_t s = worker; s < step.sequence_count; s += workers) mark_prompt(args, step.sequences[s]);
  } else if (step.sampling != nullptr) {
    int32_t* scratch = args.scratch + int64_t(worker) * args.vocabulary;
    for (int32_t row = worker; row < step.row_count; row += workers) sample_row(args, row, scratch);
  }
}

}  // namespace nibblet
