#include "native/runtime/step_input.h"

#include "test/runtime/fixture.h"

using namespace nibblet;
using namespace nibblet::test;

namespace {

Sampling neutral() {
  Sampling sampling{};
  sampling.top_p = 1;
  sampling.repetition = 1;
  sampling.logprobs = -1;
  sampling.budget = -1;
  return sampling;
}

/// One decode row in slot 3 at position 70 and a prompt of three tokens in slot 1; both sample.
struct Fixture {
  Batch batch{2};

  Fixture() {
    batch.add(3, 70, 1, kDecode, {5, 6});
    batch.sample_last(with_lists());
    int32_t first = batch.add(1, 0, 3, kCount, {7, 8});
    for (int32_t i = 0; i < 3; ++i) batch.ids[size_t(first + i)] = 10 + i;
    batch.sample_last(neutral());
  }
  Sampling with_lists() {
    Sampling sampling = neutral();
    sampling.stop_first = batch.list({2, 3});
    sampling.stop_count = 2;
    sampling.think_end_first = batch.list({4});
    sampling.think_end_count = 1;
    sampling.forced_first = batch.list({4, 5});
    sampling.forced_count = 2;
    return sampling;
  }
  std::vector<int32_t> words() const { return pack_step(batch.step(), batch.lists); }
};

// Offsets of the packed words of the fixture.
constexpr size_t kIdsAt = kStepHeaderWords, kOwnersAt = kIdsAt + 4, kSequencesAt = kOwnersAt + 4,
                 kSequenceSize = 6;
constexpr size_t kRowsAt = kSequencesAt + 2 * kSequenceSize + 4, kSamplingAt = kRowsAt + 4;

int32_t bits(float value) {
  int32_t word;
  std::memcpy(&word, &value, 4);
  return word;
}

std::optional<Error> parse(const std::vector<int32_t>& words) {
  return error_of([&] { make_input(words); });
}

/// Reads all that a kernel would read through the step: out-of-range references show under AddressSanitizer.
int64_t touch(const Step& step) {
  int64_t sum = 0;
  for (int32_t t = 0; t < step.tokens; ++t)
    sum += int64_t(step.ids[t]) + step.sequences[step.sequence_of[t]].slot;
  for (int32_t s = 0; s < step.sequence_count; ++s) {
    const Sequence& sequence = step.sequences[s];
    for (int32_t t = 0; t < sequence.count; ++t) sum += step.ids[sequence.first + t];
    for (int32_t p = 0; p < (sequence.position + sequence.count + kPageTokens - 1) / kPageTokens; ++p) {
      sum += step.pages[int64_t(s) * step.pages_per_sequence + p];
    }
  }
  for (int32_t r = 0; r < step.row_count; ++r) {
    sum += int64_t(step.ids[step.rows[r].token]) + step.sequences[step.rows[r].sequence].slot;
    if (!step.sampling) continue;
    const Sampling& sampling = step.sampling[r];
    for (int32_t i = 0; i < sampling.stop_count; ++i) sum += step.lists[sampling.stop_first + i];
    for (int32_t i = 0; i < sampling.think_end_count; ++i) sum += step.lists[sampling.think_end_first + i];
    for (int32_t i = 0; i < sampling.forced_count; ++i) sum += step.lists[sampling.forced_first + i];
  }
  return sum;
}

}  // namespace

TEST(step_input_accepts_a_good_step) {
  Fixture fixture;
  auto input = make_input(fixture.words());
  const Step& step = input->step();
  CHECK_EQ(step.tokens, 4);
  CHECK_EQ(step.sequence_count, 2);
  CHECK_EQ(step.row_count, 2);
  CHECK_EQ(step.pages_per_sequence, 2);
  CHECK_EQ(step.ids[0], -1);
  CHECK_EQ(step.ids[3], 12);
  CHECK_EQ(step.sequence_of[3], 1);
  CHECK_EQ(step.sequences[0].slot, 3);
  CHECK_EQ(step.pages[3], 8);
  CHECK_EQ(step.rows[1].token, 3);
  CHECK_EQ(step.sampling[0].forced_count, 2);
  CHECK_EQ(step.lists[4], 5);
  CHECK(touch(step) != 0);
}

TEST(step_input_copies_its_words) {
  Fixture fixture;
  std::vector<int32_t> words = fixture.words();
  auto input = make_input(words);
  std::fill(words.begin(), words.end(), -7);
  CHECK_EQ(input->step().ids[3], 12);
}

TEST(step_input_without_sampling) {
  Fixture fixture;
  fixture.batch.sampling.clear();
  // Rows that do not sample may share a sequence.
  fixture.batch.rows.push_back({1, 1});
  auto input = make_input(fixture.words());
  CHECK(input->step().sampling == nullptr);
  CHECK_EQ(input->step().row_count, 3);
}

TEST(step_input_rejects_malformed_words) {
  const std::vector<int32_t> good = Fixture().words();
  struct Case {
    const char* message;
    size_t at;
    int32_t value;
  };
  const Case cases[] = {
      {"header", 0, 0},
      {"a count is out of range", 1, -1},
      {"a count is out of range", 2, (1 << 28) + 1},
      {"a count is out of range", 3, INT32_MIN},
      {"a count is out of range", 6, -1},
      {"truncated", 1, 1 << 28},
      {"truncated", 2, 1 << 28},
      {"truncated", 3, 1 << 28},
      {"truncated", 4, 1 << 28},
      {"truncated", 6, 1 << 28},
      {"trailing words", 6, 4},
      {"trailing words", 5, 0},
      {"only decode tokens have id -1", kIdsAt, 5},
      {"only decode tokens have id -1", kIdsAt + 1, -1},
      {"a token is assigned to the wrong sequence", kOwnersAt, 1},
      {"a token is assigned to the wrong sequence", kOwnersAt + 3, 0},
      {"a token is assigned to the wrong sequence", kOwnersAt + 3, -5},
      {"negative slot", kSequencesAt, -1},
      {"two sequences share a slot", kSequencesAt, 1},
      {"do not cover the tokens in order", kSequencesAt + 1, 1},
      {"do not cover the tokens in order", kSequencesAt + 2, 0},
      {"more than one token", kSequencesAt + 2, 2},
      {"out of range", kSequencesAt + kSequenceSize + 2, INT32_MAX},
      {"negative slot or position", kSequencesAt + 3, -1},
      {"longer than its pages", kSequencesAt + 3, 128},
      {"longer than its pages", kSequencesAt + 3, INT32_MAX},
      {"only decode tokens have id -1", kSequencesAt + 4, 0},
      {"more than one token", kSequencesAt + kSequenceSize + 4, kDecode},
      {"a row's token is out of range", kRowsAt, -1},
      {"a row's token is out of range", kRowsAt, 4},
      {"a row's sequence is out of range", kRowsAt + 1, 2},
      {"a row's sequence is out of range", kRowsAt + 1, -1},
      {"a row's token is another sequence's", kRowsAt, 2},
      {"temperature is negative", kSamplingAt, bits(-1.0f)},
      {"temperature is negative", kSamplingAt, bits(std::nanf(""))},
      {"logprobs is out of range", kSamplingAt + 9, -2},
      {"logprobs is out of range", kSamplingAt + 9, kTopLogprobs + 1},
      {"a list of stop ids", kSamplingAt + 11, -1},
      {"a list of stop ids", kSamplingAt + 12, 6},
      {"a list of think-end ids", kSamplingAt + 13, INT32_MAX},
      {"a list of think-end ids", kSamplingAt + 14, INT32_MAX},
      {"a list of forced ids", kSamplingAt + 15, 4},
      {"a list of forced ids", kSamplingAt + 16, -1},
  };
  for (const Case& test : cases) {
    std::vector<int32_t> words = good;
    words[test.at] = test.value;
    CHECK_ERROR("INVALID_OPTION", parse(words), "malformed step input", test.message);
  }
  // A word out of place in the slots of the second sequence: both sample for the first.
  std::vector<int32_t> words = good;
  words[kRowsAt + 2] = 0, words[kRowsAt + 3] = 0;
  CHECK_ERROR("INVALID_OPTION", parse(words), "two rows sample for one sequence");
}

TEST(step_input_rejects_every_cut) {
  const std::vector<int32_t> good = Fixture().words();
  for (size_t bytes = 0; bytes < good.size() * 4; ++bytes) {
    CHECK_THROWS("INVALID_OPTION", StepInput(reinterpret_cast<const uint8_t*>(good.data()), bytes));
  }
  std::vector<int32_t> longer = good;
  longer.push_back(0);
  CHECK_ERROR("INVALID_OPTION", parse(longer), "trailing words");
}

TEST(step_input_survives_mutations) {
  Random random(7);
  const std::vector<int32_t> good = Fixture().words();
  const int32_t odd[] = {-1, 0, 1, 2, 3, 4, 64, 128, 1 << 20, 1 << 28, INT32_MAX, INT32_MIN};
  int accepted = 0, rejected = 0;
  int64_t sum = 0;
  for (int round = 0; round < 20000; ++round) {
    std::vector<int32_t> words = good;
    for (int32_t changes = 1 + random.below(3); changes > 0; --changes) {
      size_t at = size_t(random.below(int32_t(words.size())));
      int32_t kind = random.below(4);
      if (kind == 0) words[at] = int32_t(random.bits());
      if (kind == 1) words[at] = odd[random.below(int32_t(std::size(odd)))];
      if (kind == 2) words[at] = int32_t(uint32_t(words[at]) + uint32_t(random.below(7) - 3));
      if (kind == 3) words.resize(at + 1);
    }
    // Exactly as long as the words, so that a read beyond them shows.
    std::vector<int32_t> exact(words);
    std::optional<Error> error = error_of([&] { sum += touch(make_input(exact)->step()); });
    if (error) CHECK_EQ(error->code(), "INVALID_OPTION");
    ++(error ? rejected : accepted);
  }
  CHECK(accepted > 100);
  CHECK(rejected > 5000);
  CHECK(sum != 1);
}
