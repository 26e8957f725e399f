#pragma once

#include <limits>

#include "kernels/sample/sample.h"
#include "test/kernels/batch.h"

namespace nibblet {

inline bool operator==(const Result& a, const Result& b) { return std::memcmp(&a, &b, sizeof a) == 0; }
inline bool operator==(const Slot& a, const Slot& b) { return std::memcmp(&a, &b, sizeof a) == 0; }

namespace test {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// Parameters that change nothing: plain sampling at temperature 1, no log probabilities, no limit.
inline Sampling plain_sampling() {
  Sampling s = {};
  s.temperature = 1;
  s.top_p = 1;
  s.repetition = 1;
  s.logprobs = -1;
  s.budget = -1;
  return s;
}

/// What `sample` keeps between steps.
struct Sampler {
  int32_t vocabulary;
  std::vector<Slot> slots;
  std::vector<uint8_t> seen;
  std::vector<uint32_t> counts;

  /// Slots start as garbage: only kStart and position 0 may give them a meaning.
  Sampler(int32_t vocabulary_, int32_t slot_count)
      : vocabulary(vocabulary_),
        slots(slot_count, Slot{-5, 0, 7, 99, 99, {}}),
        seen(size_t(slot_count) * vocabulary_, 0xcc),
        counts(size_t(slot_count) * vocabulary_, 0xcccccccc) {}

  /// @param logits  [rows, vocabulary]
  std::vector<Result> run(const Batch& batch, std::vector<float> logits, int workers = 1) {
    const Step step = batch.step();
    Result garbage;
    std::memset(&garbage, 0xee, sizeof garbage);
    std::vector<Result> results(batch.rows.size(), garbage);
    std::vector<int32_t> scratch(size_t(workers) * vocabulary, -1);
    const SampleArgs args = {&step,       slots.data(),  vocabulary,     logits.data(),
                             seen.data(), counts.data(), results.data(), scratch.data()};
    run_phases(sample, kSamplePhases, args, workers);
    return results;
  }
};

}  // namespace test
}  // namespace nibblet
