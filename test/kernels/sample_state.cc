#include <algorithm>

#include "test/kernels/sampler.h"

// What `sample` carries from step to step: counts and penalties, activity, thinking, forced tokens.
namespace nibblet::test {
namespace {

constexpr int32_t kVocabulary = 50;

/// Logits that make greedy sampling choose `token`.
std::vector<float> favour(int32_t token) {
  std::vector<float> logits(kVocabulary, 0.0f);
  logits[token] = 10;
  return logits;
}

/// A reply in slot 0, one token a step: the first row ends a prompt of three tokens, the others decode.
class Reply {
 public:
  explicit Reply(const Sampling& sampling, uint32_t sequence_flags = 0)
      : sampling_(sampling), sequence_flags_(sequence_flags) {
    sampling_.temperature = 0;
  }

  Result step(const std::vector<float>& logits) {
    Batch batch;
    Sampling sampling = sampling_;
    if (position_ == 0) {
      batch.add(0, 0, 3, sequence_flags_);
      batch.ids = {4, 5, 4};
      sampling.flags |= kStart;
      position_ = 3;
    } else {
      batch.add(0, position_++, 1, kDecode | sequence_flags_);
    }
    sampling.stop_first = batch.list(stop);
    sampling.stop_count = int32_t(stop.size());
    sampling.think_end_first = batch.list(think_end);
    sampling.think_end_count = int32_t(think_end.size());
    sampling.forced_first = batch.list(forced);
    sampling.forced_count = int32_t(forced.size());
    batch.sample_last(sampling);
    return sampler.run(batch, logits)[0];
  }

  Sampler sampler = Sampler(kVocabulary, 2);
  std::vector<int32_t> stop = {2, 11};
  std::vector<int32_t> think_end = {13};
  std::vector<int32_t> forced = {20, 13, 21};

 private:
  Sampling sampling_;
  uint32_t sequence_flags_;
  int32_t position_ = 0;
};

Sampling thinking_sampling(int32_t budget) {
  Sampling s = plain_sampling();
  s.flags = kThinking;
  s.budget = budget;
  return s;
}

}  // namespace

TEST(sample_stop) {
  Reply reply(plain_sampling());
  CHECK_EQ(reply.step(favour(7)).flags, uint32_t{kSampled});
  CHECK_EQ(reply.sampler.slots[0].active, 1);
  CHECK_EQ(reply.sampler.slots[0].token, 7);
  CHECK_EQ(reply.sampler.slots[0].thinking, 0);
  const Result stopped = reply.step(favour(11));
  CHECK_EQ(stopped.token, 11);
  CHECK_EQ(stopped.flags, uint32_t{kSampled | kStopped});
  CHECK_EQ(reply.sampler.slots[0].active, 0);
  // The step that was enqueued before anyone could know.
  const Sampler before = reply.sampler;
  const Result idle = reply.step(favour(8));
  CHECK(idle == Result{});
  CHECK(reply.sampler.slots == before.slots);
  CHECK(reply.sampler.seen == before.seen);
  CHECK(reply.sampler.counts == before.counts);
}

TEST(sample_budget) {
  // Two tokens of thought, then the whole forced list although its second token ends thinking, then freedom.
  Reply reply(thinking_sampling(2));
  const int32_t wanted[] = {7, 8, 9, 9, 9, 13, 30};
  const int32_t expected[] = {7, 8, 20, 13, 21, 13, 30};
  for (int i = 0; i < 7; ++i) {
    const Result result = reply.step(favour(wanted[i]));
    CHECK_EQ(result.token, expected[i]);
    CHECK_EQ(result.flags, uint32_t(i >= 2 && i < 5 ? kSampled | kForced : kSampled));
    CHECK_EQ(reply.sampler.slots[0].token, expected[i]);
    CHECK_EQ(reply.sampler.slots[0].thinking, int32_t(i < 4));
    CHECK_EQ(reply.sampler.slots[0].budget, std::max(0, 1 - i));
  }

  // Nothing to think with: forced from the first token on. A forced token can stop the reply.
  Reply none(thinking_sampling(0));
  none.forced = {20, 2};
  CHECK_EQ(none.step(favour(7)).token, 20);
  const Result last = none.step(favour(7));
  CHECK_EQ(last.token, 2);
  CHECK_EQ(last.flags, uint32_t{kSampled | kForced | kStopped});
  CHECK_EQ(none.sampler.slots[0].active, 0);

  // Thinking that ends by itself leaves its budget alone and forces nothing afterwards.
  Reply own(thinking_sampling(3));
  CHECK_EQ(own.step(favour(7)).token, 7);
  CHECK_EQ(own.step(favour(13)).token, 13);
  for (int i = 0; i < 4; ++i) CHECK_EQ(own.step(favour(30 + i)).token, 30 + i);
  CHECK_EQ(own.sampler.slots[0].thinking, 0);
  CHECK_EQ(own.sampler.slots[0].budget, 1);

  // No limit, and no thinking at all: the forced list stays unused.
  Reply unlimited(thinking_sampling(-1));
  Reply plain((plain_sampling()));
  for (int i = 0; i < 10; ++i) {
    CHECK_EQ(unlimited.step(favour(30 + i)).token, 30 + i);
    CHECK_EQ(plain.step(favour(30 + i)).token, 30 + i);
  }
  CHECK_EQ(unlimited.sampler.slots[0].budget, -1);
  CHECK_EQ(unlimited.sampler.slots[0].thinking, 1);
}

TEST(sample_forced_logprob) {
  Sampling s = thinking_sampling(0);
  s.logprobs = 1;
  Reply reply(s);
  const Result result = reply.step(favour(7));
  CHECK_EQ(result.token, 20);
  const double normaliser = std::log(std::exp(10.0) + kVocabulary - 1);
  CHECK_NEAR(result.logprob, -normaliser, 1e-6);
  CHECK_EQ(result.top_ids[0], 7);
  CHECK_NEAR(result.top_logprobs[0], 10 - normaliser, 1e-6);
}

TEST(sample_counts) {
  Reply reply(plain_sampling(), kCount);
  for (const int32_t token : {7, 9, 7, 4}) CHECK_EQ(reply.step(favour(token)).token, token);
  for (int32_t id = 0; id < kVocabulary; ++id) {
    CHECK_EQ(int(reply.sampler.seen[id]), int(id == 4 || id == 5 || id == 7 || id == 9));
    CHECK_EQ(reply.sampler.counts[id], uint32_t(id == 7 ? 2 : id == 9 || id == 4 ? 1 : 0));
    // The other slot is nobody's.
    CHECK_EQ(int(reply.sampler.seen[kVocabulary + id]), 0xcc);
  }
  // Forced tokens are output too.
  Sampling s = thinking_sampling(0);
  Reply forced(s, kCount);
  forced.step(favour(7));
  CHECK_EQ(forced.sampler.counts[20], 1u);
  CHECK_EQ(forced.sampler.counts[7], 0u);
  // Without kCount the tables are not touched.
  Reply uncounted(plain_sampling());
  uncounted.step(favour(7));
  CHECK_EQ(int(uncounted.sampler.seen[7]), 0xcc);
}

TEST(sample_prompt_chunks) {
  Sampler sampler(kVocabulary, 2);
  for (int32_t chunk = 0; chunk < 3; ++chunk) {
    // No row is sampled before the last chunk.
    Batch batch;
    batch.add(1, chunk * 2, 2, kCount);
    batch.ids = {10 + chunk, 20 + chunk};
    sampler.run(batch, {});
  }
  for (int32_t id = 0; id < kVocabulary; ++id) {
    CHECK_EQ(int(sampler.seen[kVocabulary + id]), int((id >= 10 && id < 13) || (id >= 20 && id < 23)));
    CHECK_EQ(sampler.counts[kVocabulary + id], 0u);
    CHECK_EQ(int(sampler.seen[id]), 0xcc);
  }
}

TEST(sample_penalties) {
  Random random(4);
  for (int trial = 0; trial < 300; ++trial) {
    Sampling s = plain_sampling();
    s.temperature = 0;
    s.repetition = float(0.7 + random.uniform());
    s.presence = float(random.normal());
    s.frequency = float(random.normal());
    Sampler sampler(kVocabulary, 1);
    for (int32_t id = 0; id < kVocabulary; ++id) {
      sampler.counts[id] = uint32_t(std::max(0, random.below(6) - 2));
      sampler.seen[id] = sampler.counts[id] > 0 || random.below(3) == 0;
    }
    const std::vector<float> logits = random.normals(kVocabulary, 1.5);
    std::vector<double> scores(logits.begin(), logits.end());
    for (int32_t id = 0; id < kVocabulary; ++id) {
      double& score = scores[id];
      if (sampler.seen[id]) score = score > 0 ? score / s.repetition : score * s.repetition;
      if (sampler.counts[id] > 0) score -= double(s.frequency) * sampler.counts[id] + s.presence;
    }
    const auto best = std::max_element(scores.begin(), scores.end());
    const int32_t expected = int32_t(best - scores.begin());
    *best -= 1e-5;
    if (std::max_element(scores.begin(), scores.end()) - scores.begin() != expected)
      continue;  // too close to call
    sampler.slots[0].active = 1;
    const Sampler start = sampler;
    Batch batch;
    batch.add(0, 40, 1, kDecode | kCount);
    batch.sample_last(s);
    CHECK_EQ(sampler.run(batch, logits)[0].token, expected);
    // The same parameters without kCount: nothing is penalised.
    sampler = start;
    batch.sequences[0].flags = kDecode;
    CHECK_EQ(sampler.run(batch, logits)[0].token,
             int32_t(std::max_element(logits.begin(), logits.end()) - logits.begin()));
  }
}

TEST(sample_batch) {
  // Rows together, in another order, and with any number of workers give what they give alone.
  const int32_t rows = 9;
  const int32_t vocabulary = 700;
  Random random(12);
  std::vector<Sampling> parameters(rows, plain_sampling());
  for (Sampling& s : parameters) {
    s.temperature = float(0.5 + random.uniform());
    s.top_k = random.below(2) * (1 + random.below(100));
    s.top_p = random.below(2) ? 0.9f : 1.0f;
    s.min_p = random.below(2) ? 0.05f : 0.0f;
    s.repetition = 1.2f;
    s.presence = 0.5f;
    s.logprobs = random.below(kTopLogprobs + 2) - 1;
    s.seed_low = uint32_t(random.bits());
    s.flags = kStart;
  }
  const std::vector<float> logits = random.normals(size_t(rows) * vocabulary, 3);
  const auto row_logits = [&](int32_t i) {
    return std::vector<float>(logits.begin() + i * vocabulary, logits.begin() + (i + 1) * vocabulary);
  };
  const auto add = [&](Batch& batch, int32_t i) {
    const int32_t first = batch.add(i, 0, 1 + i % 3, kCount);
    for (int32_t t = 0; t <= i % 3; ++t) batch.ids[first + t] = (i * 31 + t * 7) % vocabulary;
    batch.sample_last(parameters[i]);
  };
  Sampler apart(vocabulary, rows);
  std::vector<Result> expected;
  for (int32_t i = 0; i < rows; ++i) {
    Batch alone;
    add(alone, i);
    expected.push_back(apart.run(alone, row_logits(i))[0]);
  }
  for (const int workers : {1, 2, 3, 7}) {
    for (const bool backwards : {false, true}) {
      Batch batch;
      std::vector<float> all;
      for (int32_t i = 0; i < rows; ++i) {
        const int32_t which = backwards ? rows - 1 - i : i;
        add(batch, which);
        const std::vector<float> part = row_logits(which);
        all.insert(all.end(), part.begin(), part.end());
      }
      Sampler together(vocabulary, rows);
      const std::vector<Result> results = together.run(batch, all, workers);
      for (int32_t i = 0; i < rows; ++i) CHECK(results[i] == expected[backwards ? rows - 1 - i : i]);
      CHECK(together.slots == apart.slots);
      CHECK(together.seen == apart.seen);
      CHECK(together.counts == apart.counts);
    }
  }
}

}  // namespace nibblet::test
