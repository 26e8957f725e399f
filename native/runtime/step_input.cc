#include "native/runtime/step_input.h"

#include <cstring>
#include <string>
#include <vector>

#include "native/runtime/error.h"

namespace nibblet {
namespace {

[[noreturn]] void malformed(const std::string& what) {
  throw invalid("malformed step input: " + what + "; build it with lib/engine/step-input.ts");
}

void check_range(int32_t first, int32_t count, int64_t size, const char* what) {
  if (first < 0 || count < 0 || int64_t(first) + count > size)
    malformed(std::string(what) + " is out of range");
}

void check_sequences(const Step& step) {
  int32_t next = 0;
  for (int32_t s = 0; s < step.sequence_count; ++s) {
    const Sequence& sequence = step.sequences[s];
    if (sequence.first != next || sequence.count < 1) malformed("sequences do not cover the tokens in order");
    check_range(sequence.first, sequence.count, step.tokens, "a sequence's tokens");
    if (sequence.slot < 0 || sequence.position < 0) malformed("a sequence has a negative slot or position");
    if ((sequence.flags & kDecode) && sequence.count != 1)
      malformed("a decode sequence has more than one token");
    int64_t capacity = int64_t(step.pages_per_sequence) * kPageTokens;
    if (int64_t(sequence.position) + sequence.count > capacity)
      malformed("a sequence is longer than its pages");
    for (int32_t t = 0; t < sequence.count; ++t) {
      if (step.sequence_of[next + t] != s) malformed("a token is assigned to the wrong sequence");
      if ((step.ids[next + t] == -1) != ((sequence.flags & kDecode) != 0))
        malformed("only decode tokens have id -1");
    }
    next += sequence.count;
  }
  if (next != step.tokens) malformed("sequences do not cover the tokens");
  for (int32_t a = 0; a < step.sequence_count; ++a) {
    for (int32_t b = 0; b < a; ++b) {
      if (step.sequences[a].slot == step.sequences[b].slot) malformed("two sequences share a slot");
    }
  }
}

void check_rows(const Step& step) {
  std::vector<bool> sampled(size_t(step.sampling ? step.sequence_count : 0));
  for (int32_t r = 0; r < step.row_count; ++r) {
    const LogitsRow& row = step.rows[r];
    check_range(row.token, 1, step.tokens, "a row's token");
    check_range(row.sequence, 1, step.sequence_count, "a row's sequence");
    if (step.sequence_of[row.token] != row.sequence) malformed("a row's token is another sequence's");
    if (!step.sampling) continue;
    // The rows of a step are sampled at the same time.
    if (sampled[size_t(row.sequence)]) malformed("two rows sample for one sequence");
    sampled[size_t(row.sequence)] = true;
  }
}

void check_sampling(const Step& step, int32_t list_words) {
  for (int32_t r = 0; r < step.row_count; ++r) {
    const Sampling& sampling = step.sampling[r];
    check_range(sampling.stop_first, sampling.stop_count, list_words, "a list of stop ids");
    check_range(sampling.think_end_first, sampling.think_end_count, list_words, "a list of think-end ids");
    check_range(sampling.forced_first, sampling.forced_count, list_words, "a list of forced ids");
    if (sampling.logprobs < -1 || sampling.logprobs > kTopLogprobs) malformed("logprobs is out of range");
    if (sampling.temperature < 0 || sampling.temperature != sampling.temperature)
      malformed("temperature is negative");
  }
}

}  // namespace

StepInput::StepInput(const uint8_t* data, size_t bytes) {
  if (bytes % 4 != 0 || bytes < kStepHeaderWords * 4) malformed("size");
  words_.resize(bytes / 4);
  std::memcpy(words_.data(), data, bytes);
  const int32_t* header = words_.data();
  if (header[0] != kStepMagic) malformed("header");
  step_.tokens = header[1];
  step_.sequence_count = header[2];
  step_.row_count = header[3];
  step_.pages_per_sequence = header[4];
  bool samples = header[5] != 0;
  int32_t list_words = header[6];
  for (int i = 1; i < kStepHeaderWords; ++i) {
    if (header[i] < 0 || header[i] > (1 << 28)) malformed("a count is out of range");
  }
  const int32_t* at = header + kStepHeaderWords;
  const int32_t* end = header + words_.size();
  auto take = [&](int64_t words) {
    if (words > end - at) malformed("truncated");
    const int32_t* start = at;
    at += words;
    return start;
  };
  step_.ids = take(step_.tokens);
  step_.sequence_of = take(step_.tokens);
  step_.sequences =
      reinterpret_cast<const Sequence*>(take(int64_t(step_.sequence_count) * (sizeof(Sequence) / 4)));
  step_.pages = take(int64_t(step_.sequence_count) * step_.pages_per_sequence);
  step_.rows = reinterpret_cast<const LogitsRow*>(take(int64_t(step_.row_count) * (sizeof(LogitsRow) / 4)));
  if (samples)
    step_.sampling =
        reinterpret_cast<const Sampling*>(take(int64_t(step_.row_count) * (sizeof(Sampling) / 4)));
  step_.lists = take(list_words);
  if (at != end) malformed("trailing words");
  check_sequences(step_);
  check_rows(step_);
  if (samples) check_sampling(step_, list_words);
}

Step StepInput::step_at(const int32_t* copy) const {
  Step moved = step_;
  const auto move = [&](auto*& list) {
    if (list == nullptr) return;
    using Pointer = std::remove_reference_t<decltype(list)>;
    list = reinterpret_cast<Pointer>(copy + (reinterpret_cast<const int32_t*>(list) - words_.data()));
  };
  move(moved.ids);
  move(moved.sequence_of);
  move(moved.sequences);
  move(moved.pages);
  move(moved.rows);
  move(moved.sampling);
  move(moved.lists);
  return moved;
}

}  // namespace nibblet
