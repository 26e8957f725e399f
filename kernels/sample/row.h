#pragma once

#include "kernels/sample/philox.h"
#include "kernels/sample/sample.h"
#include "kernels/sample/score.h"

/// What sampling one row means apart from the choice among its scores: the CPU and the GPU share it.
namespace nibblet {

NIBBLET_HD inline bool contains(const int32_t* lists, int32_t first, int32_t count, int32_t token) {
  for (int32_t i = first; i < first + count; ++i) {
    if (lists[i] == token) return true;
  }
  return false;
}

/// The slot as the row finds it: set anew where the row starts a reply.
NIBBLET_HD inline Slot started(Slot slot, const Sampling& sampling) {
  if ((sampling.flags & kStart) != 0) {
    slot.active = 1;
    slot.thinking = (sampling.flags & kThinking) != 0;
    slot.budget = sampling.budget;
    slot.forced = 0;
  }
  return slot;
}

/// Whether the row's token is the next of the forced list.
NIBBLET_HD inline bool is_forced(const Slot& slot, const Sampling& sampling) {
  return slot.thinking != 0 && slot.budget == 0 && slot.forced < sampling.forced_count;
}

/// Moves the slot past `token`. The whole forced list is emitted, even where a token in its middle is a think-end id.
NIBBLET_HD inline void advance(Slot& slot, const Sampling& sampling, const int32_t* lists, int32_t token,
                               bool forced, Result& result) {
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

NIBBLET_HD inline float uniform_of_row(const LogitsRow& place, const Sequence& sequence,
                                       const Sampling& sampling) {
  const uint32_t position = uint32_t(sequence.position + (place.token - sequence.first) + 1);
  const PhiloxBlock block = philox4x32({{position, 0, 0, 0}}, sampling.seed_low, sampling.seed_high);
  return uniform_from_bits(block.word[0]);
}

NIBBLET_HD inline Scores scores_of_row(const SampleArgs& args, int32_t row, const Sequence& sequence,
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

}  // namespace nibblet
