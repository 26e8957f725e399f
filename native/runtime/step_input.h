#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/step.h"

namespace nibblet {

/// The packed form of a Step: 32-bit words, written by lib/engine/step-input.ts.
///
///   header  kStepHeaderWords words: magic, tokens, sequences, rows, pages per sequence, 1 when rows sample, list words, 0
///   ids [tokens] · sequence_of [tokens] · sequences [sequences] of Sequence · pages [sequences, pages per sequence] ·
///   rows [rows] of LogitsRow · sampling [rows] of Sampling when rows sample · lists
class StepInput {
 public:
  /// Copies and checks the words: counts, ranges and cross references. Throws INVALID_OPTION.
  StepInput(const uint8_t* data, size_t bytes);
  const Step& step() const { return step_; }
  const std::vector<int32_t>& words() const { return words_; }
  /// The step whose lists lie in a copy of the words at `copy`, which may be memory that only a device can read.
  Step step_at(const int32_t* copy) const;

 private:
  std::vector<int32_t> words_;
  Step step_{};
};

constexpr int kStepHeaderWords = 8;
constexpr int32_t kStepMagic = 0x5354'4550;

}  // namespace nibblet
