#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "kernels/sample/lanes.h"
#include "kernels/sample/philox.h"
#include "test/kernels/distribution.h"
#include "test/kernels/inputs.h"
#include "test/kernels/sampler.h"

namespace nibblet::test {
namespace {

bool same_words(PhiloxBlock a, PhiloxBlock b) { return std::memcmp(&a, &b, sizeof a) == 0; }

/// The result of one row that starts a reply at `position`.
Result sample_one(const std::vector<float>& logits, Sampling sampling, int32_t position, int workers = 1) {
  Sampler sampler(int32_t(logits.size()), 1);
  Batch batch;
  batch.add(0, position, 1);
  batch.ids[0] = 0;
  sampling.flags |= kStart;
  batch.sample_last(sampling);
  return sampler.run(batch, logits, workers)[0];
}

}  // namespace

// Published with Random123 (kat_vectors).
TEST(philox_known_answers) {
  CHECK(same_words(philox4x32({{0, 0, 0, 0}}, 0, 0), {{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}}));
  CHECK(same_words(philox4x32({{~0u, ~0u, ~0u, ~0u}}, ~0u, ~0u),
                   {{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}}));
  CHECK(same_words(philox4x32({{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}}, 0xa4093822, 0x299f31d0),
                   {{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}}));
  CHECK_EQ(uniform_from_bits(0), 0.0f);
  CHECK_EQ(uniform_from_bits(~0u), 1 - 0x1p-24f);
}

TEST(sample_lanes_find_the_first_of_equal_logits) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity(),
                  kNaN = std::numeric_limits<float>::quiet_NaN();
  for_each_cpu_variant([] {
    const SampleLanes& lanes = sample_lanes();
    Random random(3);
    for (int32_t count = 1; count <= 200; ++count) {
      std::vector<float> logits = random.normals(size_t(count), 2);
      // Of few values, so that the largest is there more than once.
      for (float& logit : logits) logit = std::round(logit);
      logits[size_t(count) / 2] = kNaN;
      const std::vector<float> values = {5, 1, 0.0f, -0.0f, -1, kInfinity, -kInfinity};
      for (const float value : values) {
        const auto first = std::find(logits.begin(), logits.end(), value);
        CHECK_EQ(lanes.find(logits.data(), count, value), int32_t(first - logits.begin()));
      }
      float largest = -kInfinity;
      for (const float logit : logits) largest = logit > largest ? logit : largest;
      CHECK_EQ(lanes.largest(logits.data(), count), largest);
      logits[size_t(count) / 3] = kInfinity;
      CHECK_EQ(lanes.find(logits.data(), count, kInfinity), count / 3);
    }
  });
}

TEST(sample_greedy) {
  for_each_cpu_variant([] {
    Sampling greedy = plain_sampling();
    greedy.temperature = 0;
    CHECK_EQ(sample_one({1, 3, 2, 3}, greedy, 5).token, 1);
    const float nan = std::nanf("");
    CHECK_EQ(sample_one({nan, -kInfinity, -1e30f, nan}, greedy, 5).token, 2);
    CHECK_EQ(sample_one({nan, 5, kInfinity, kInfinity}, greedy, 5).token, 2);
    CHECK_EQ(sample_one({nan, nan, nan}, greedy, 5).token, 0);
    // Sampling is as safe: what cannot be chosen is not, and where nothing can be it is token 0.
    for (int32_t position = 0; position < 50; ++position) {
      CHECK_EQ(sample_one({nan, nan, nan}, plain_sampling(), position).token, 0);
      CHECK_EQ(sample_one({nan, -kInfinity, 3, -kInfinity}, plain_sampling(), position).token, 2);
      const int32_t token = sample_one({kInfinity, 9, kInfinity, nan}, plain_sampling(), position).token;
      CHECK(token == 0 || token == 2);
      Sampling cold = plain_sampling();
      cold.temperature = 1e-30f;
      CHECK_EQ(sample_one({1, 2, 1.5f}, cold, position).token, 1);
    }
  });
}

TEST(sample_oracle) {
  Random random(1);
  int compared = 0, undecided = 0;
  for (int trial = 0; trial < 4000; ++trial) {
    const int32_t vocabulary = trial % 400 == 0 ? 131072 : 1 + random.below(300);
    // Rounded to halves now and then, for ties.
    std::vector<float> logits = random.normals(vocabulary, 3);
    if (trial % 3 == 0) {
      for (float& logit : logits) logit = std::round(logit * 2) / 2;
    }
    Sampling s = plain_sampling();
    s.temperature = float(0.2 + 2 * random.uniform());
    if (random.below(2)) s.top_k = 1 + random.below(vocabulary + 5);
    if (random.below(2)) s.top_p = float(random.uniform());
    if (random.below(2)) s.min_p = float(random.uniform() * random.uniform());
    s.seed_low = uint32_t(random.bits());
    s.seed_high = uint32_t(random.bits());
    const int32_t position = random.below(1 << 20);
    const uint32_t bits = philox4x32({{uint32_t(position) + 1, 0, 0, 0}}, s.seed_low, s.seed_high).word[0];
    const Distribution d = truncate(penalised(logits, s, {}, {}), s);
    const int32_t expected = d.ambiguous ? -1 : walk(d, double(bits >> 8) / (1 << 24));
    const Result result = sample_one(logits, s, position);
    CHECK_EQ(result.flags, uint32_t{kSampled});
    if (expected < 0) {
      ++undecided;
    } else {
      ++compared;
      CHECK_EQ(result.token, expected);
    }
    // Undecided or not: the variants compute the same bits.
    for_each_cpu_variant([&] { CHECK_EQ(sample_one(logits, s, position).token, result.token); });
  }
  CHECK(undecided < compared / 50);
}

TEST(sample_distribution) {
  const std::vector<float> logits = {0.3f,  2.0f, -1.0f, 1.5f,  0.0f, 1.5f,
                                     -3.0f, 0.9f, 2.2f,  -0.4f, 1.0f, -2.0f};
  const auto with = [](float temperature, int32_t k, float p, float min_p) {
    Sampling s = plain_sampling();
    s.temperature = temperature;
    s.top_k = k;
    s.top_p = p;
    s.min_p = min_p;
    s.seed_low = 20;
    s.seed_high = 26;
    return s;
  };
  for (const Sampling& s : {with(1, 0, 1, 0), with(0.6f, 0, 1, 0), with(1.7f, 5, 1, 0), with(1, 0, 0.8f, 0),
                            with(1, 0, 1, 0.2f), with(1.2f, 8, 0.9f, 0.15f)}) {
    const Distribution d = truncate(penalised(logits, s, {}, {}), s);
    const int32_t draws = 20000;
    std::vector<int32_t> histogram(logits.size());
    for (int32_t i = 0; i < draws; ++i) ++histogram[sample_one(logits, s, i).token];
    double chi_square = 0;
    int32_t kept = 0;
    for (size_t i = 0; i < d.ids.size(); ++i) {
      const double expected = d.probabilities[i] * draws;
      kept += histogram[d.ids[i]];
      chi_square += std::pow(histogram[d.ids[i]] - expected, 2) / expected;
    }
    CHECK_EQ(kept, draws);
    // The mean of the statistic is its degrees of freedom n, its deviation √2n: four deviations above is about 1 in 10⁴.
    const double degrees = double(d.ids.size()) - 1;
    CHECK(chi_square < degrees + 4 * std::sqrt(2 * degrees));
    // Far below the mean they would be evenly spaced, not random.
    CHECK(chi_square > 0.01 * degrees);
  }
}

TEST(sample_logprobs) {
  Random random(8);
  for (const int32_t vocabulary : {1, 3, 19, 20, 500, 131072}) {
    std::vector<float> logits = random.normals(vocabulary, 4);
    for (float& logit : logits) logit = std::round(logit);
    double sum = 0;
    for (const float logit : logits) sum += std::exp(double(logit));
    std::vector<int32_t> order(vocabulary);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
    for (const int32_t count : {0, 5, kTopLogprobs}) {
      Sampling s = plain_sampling();
      s.temperature = 0.5f;
      s.logprobs = count;
      const Result result = sample_one(logits, s, 77);
      CHECK_NEAR(result.logprob, double(logits[result.token]) - std::log(sum), 3e-6);
      CHECK_EQ(result.top_count, std::min(count, vocabulary));
      for (int32_t i = 0; i < result.top_count; ++i) {
        CHECK_EQ(result.top_ids[i], order[i]);
        CHECK_NEAR(result.top_logprobs[i], double(logits[order[i]]) - std::log(sum), 3e-6);
      }
      for (int32_t i = result.top_count; i < kTopLogprobs; ++i) CHECK_EQ(result.top_ids[i], 0);
    }
  }
  // Raw log probabilities of huge, infinite and NaN logits.
  Sampling s = plain_sampling();
  s.logprobs = 3;
  s.temperature = 0;
  const Result huge = sample_one({1e30f, -1e30f, std::nanf("")}, s, 0);
  CHECK_EQ(huge.logprob, 0.0f);
  CHECK_EQ(huge.top_ids[2], 2);
  CHECK_EQ(huge.top_logprobs[2], -kInfinity);
  CHECK_NEAR(sample_one({kInfinity, 4, kInfinity}, s, 0).logprob, -std::log(2.0), 1e-7);
}

}  // namespace nibblet::test
