#pragma once

#include <cstdint>

#include "kernels/numerics/host_device.h"

namespace nibblet {

/// Tokens of KV cache in one page.
constexpr int kPageTokens = 64;
/// Most alternatives a row can ask log probabilities of.
constexpr int kTopLogprobs = 20;

/// One sequence of a ragged batch: `count` consecutive tokens of the flat token list.
struct Sequence {
  int32_t slot;      ///< Mamba state, sampling state and token counts
  int32_t first;     ///< index of its first token in the flat list
  int32_t count;     ///< tokens in this step
  int32_t position;  ///< position of the first token in the sequence; 0 starts from zero state
  uint32_t flags;    ///< SequenceFlag
  int32_t reserved;
};

enum SequenceFlag : uint32_t {
  /// The token is the slot's last sampled one (its id in the list is -1). The row is skipped, with cache, state and
  /// counts untouched, when the slot is not active.
  kDecode = 1,
  /// The reply has penalties: `sample` keeps the slot's token counts.
  kCount = 2,
};

/// One row of logits: which token's, and which sequence's to sample for.
struct LogitsRow {
  int32_t token;     ///< index in the flat token list
  int32_t sequence;  ///< index in `sequences`
};

enum SamplingFlag : uint32_t {
  kStart = 1,     ///< first sampled token of a reply: sets the slot's state from this struct
  kThinking = 2,  ///< with kStart: the prompt ends inside a think block
};

/// Sampling parameters of one row. Lists are ranges of Step::lists.
struct Sampling {
  float temperature;  ///< 0: greedy
  float top_p;        ///< 1: off
  float min_p;        ///< 0: off
  float repetition;   ///< 1: off; over prompt and output tokens
  float presence;     ///< 0: off; over output tokens
  float frequency;    ///< 0: off; over output tokens
  int32_t top_k;      ///< 0: off
  uint32_t seed_low;
  uint32_t seed_high;
  int32_t logprobs;    ///< -1: none, otherwise the number of alternatives, at most kTopLogprobs
  int32_t budget;      ///< with kStart: tokens that may be thought, -1: no limit
  int32_t stop_first;  ///< ids that end the reply
  int32_t stop_count;
  int32_t think_end_first;  ///< ids that end the thinking
  int32_t think_end_count;
  int32_t forced_first;  ///< tokens forced when the budget is used up; the last ends the thinking
  int32_t forced_count;
  uint32_t flags;  ///< SamplingFlag
};

/// Everything that varies between steps: a view of one packed StepInput (native/runtime/step_input.h).
struct Step {
  int32_t tokens;
  int32_t sequence_count;
  int32_t row_count;
  int32_t pages_per_sequence;
  const int32_t* ids;          ///< [tokens]
  const int32_t* sequence_of;  ///< [tokens]
  const Sequence* sequences;   ///< [sequence_count]
  const int32_t* pages;        ///< [sequence_count, pages_per_sequence]
  const LogitsRow* rows;       ///< [row_count]
  const Sampling* sampling;    ///< [row_count], or null when the step does not sample
  const int32_t* lists;
};

/// What `sample` carries from step to step on the device, one per slot.
struct Slot {
  int32_t token;     ///< last sampled token, the input of the next decode step
  int32_t active;    ///< 0 once a stop id was sampled
  int32_t thinking;  ///< inside a think block
  int32_t budget;    ///< thinking tokens left, -1: no limit
  int32_t forced;    ///< forced tokens already emitted
  int32_t reserved[3];
};

enum ResultFlag : uint32_t {
  kSampled = 1,  ///< the row was active and has a token
  kStopped = 2,  ///< the token is a stop id
  kForced = 4,   ///< the token came from the forced list
};

/// What `sample` reports of one row.
struct Result {
  int32_t token;
  uint32_t flags;  ///< ResultFlag
  float logprob;   ///< of the token, from the raw logits; 0 when not asked for
  int32_t top_count;
  int32_t top_ids[kTopLogprobs];
  float top_logprobs[kTopLogprobs];
};

/// False when the row must leave cache, state and counts untouched.
NIBBLET_HD inline bool is_live(const Sequence& sequence, const Slot* slots) {
  return (sequence.flags & kDecode) == 0 || slots[sequence.slot].active != 0;
}

}  // namespace nibblet
