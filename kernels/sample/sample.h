#pragma once

#include "kernels/step.h"

namespace nibblet {

/// Picks the next token of every row and writes it where the next step reads it.
///
/// Log probabilities come from the raw logits. Then, in this order: repetition penalty (divide a positive logit of a
/// seen token, multiply a negative one; prompt and output), frequency and presence penalties (subtract frequency · count
/// + presence where count > 0; output only), division by the temperature, top-k, top-p (the smallest set of most likely
/// tokens whose probability reaches top_p), min-p (probability ≥ min_p · the largest), each renormalising.
/// Temperature 0 takes the largest penalised logit, ties to the lower id. Otherwise one Philox4x32-10 number with
/// counter (position of the sampled token, 0, 0, 0) and key (seed_low, seed_high) makes a uniform number in [0, 1)
/// with 24 bits, and the token is found by walking the kept tokens from the most likely (ties: lower id) down.
///
/// Thinking: while slot.thinking, each token that is not forced takes one from slot.budget (when it is not -1); with the
/// budget at 0 the row emits the forced list token by token instead. A token of the think-end list, or the last forced
/// one, ends the thinking. A stop id clears slot.active. Rows of inactive decode slots report flags 0 and change nothing.
///
/// `seen` and `counts` are kept for sequences flagged kCount alone: position 0 clears both, prompt tokens are marked seen
/// as their chunk passes, sampled tokens are counted and marked.
/// Phases: 0 marks prompt tokens (one sequence is the work of one worker), 1 samples (likewise a row).
struct SampleArgs {
  const Step* step;
  Slot* slots;
  int32_t vocabulary;
  float* logits;     ///< [rows, vocabulary]; overwritten
  uint8_t* seen;     ///< [slots, vocabulary]: 1 where a token is in the prompt or the output
  uint32_t* counts;  ///< [slots, vocabulary]: output occurrences
  Result* results;   ///< [rows]
  int32_t* scratch;  ///< workers · vocabulary
};

constexpr int kSamplePhases = 2;
void sample(const SampleArgs& args, int phase, int worker, int workers);

}  // namespace nibblet
