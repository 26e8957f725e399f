#include "kernels/sample/sample.h"

#include <algorithm>

#include "kernels/sample/choose.h"
#include "kernels/sample/logprobs.h"
#include "kernels/sample/philox.h"

namespace nibblet {
namespace {

bool contains(const int32_t* lists, int32_t first, int32_t count, int32_t token) {
  return std::find(lists + first, lists + first + count, token) != lists + first + count;
}

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

Scores scores_of_row(const SampleArgs& args, int32_t row, const Sequence& sequence,
                     const Sampling& sampling) {
  const bool penalised = (sequence.flags & kCount) != 0 &&
                         (sampling.repetition != 1 || sampling.presence != 0 || sampling.frequency != 0);
  const int64_t counted = int64_t(sequence.slot) * args.vocabulary;
  return {args.logits + int64_t(row) * args.vocabulary,
          args.vocabulary,
          penalised ? args.seen + counted : nullptr,
          penalised ? args.counts + counted : nullptr,
          sampling.repetition,
          sampling.presence,
          sampling.frequency};
}

/// Moves the slot past `token`. The whole forced list is emitted, even where a token in its middle is a think-end id.
void advance(Slot& slot, const Sampling& sampling, const int32_t* lists, int32_t token, bool forced,
             Result& result) {
  slot.token = token;
  if (forced) {
    result.flags |= kForced;
    if (++slot.forced >= sampling.forced_count) slot.thinking = 0;
  } else if (slot.thinking != 0) {
    if (slot.budget > 0) --slot.budget;
    if (contains(lists, sampling.think_end_first, sampling.think_end_count, token)) slot.thinking = 0;
  }
  if (contains(lists, sampling.stop_first, sampling.stop_count, token)) {
    result.flags |= kStopped;
    slot.active = 0;
  }
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
  if ((sampling.flags & kStart) != 0) {
    slot.active = 1;
    slot.thinking = (sampling.flags & kThinking) != 0;
    slot.budget = sampling.budget;
    slot.forced = 0;
  }

  const Scores scores = scores_of_row(args, row, sequence, sampling);
  const bool forced = slot.thinking != 0 && slot.budget == 0 && slot.forced < sampling.forced_count;
  int32_t token;
  if (forced) {
    token = step.lists[sampling.forced_first + slot.forced];
  } else {
    const uint32_t position = uint32_t(sequence.position + (place.token - sequence.first) + 1);
    const PhiloxBlock block = philox4x32({{position, 0, 0, 0}}, sampling.seed_low, sampling.seed_high);
    token = choose_token(scores, sampling, uniform_from_bits(block.word[0]), scratch);
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
