#include "kernels/sample/philox.h"
#include "test/cuda/sampler.h"
#include "test/kernels/distribution.h"

// The choice of a token and log probabilities, against the CPU and, where they differ, against float64.
namespace nibblet::test {
namespace {

/// One step of rows that each start a reply, with `capacity` rows of room.
struct Rows {
  explicit Rows(int32_t vocabulary_) : vocabulary(vocabulary_) {}

  int32_t vocabulary;
  Batch batch;
  std::vector<float> logits;

  void add(const std::vector<float>& row, Sampling sampling, int32_t position) {
    batch.add(int32_t(batch.rows.size()), position, 1);
    batch.ids.back() = 0;
    sampling.flags |= kStart;
    batch.sample_last(sampling);
    logits.insert(logits.end(), row.begin(), row.end());
  }
  std::vector<float> row(size_t i) const {
    return {logits.begin() + ptrdiff_t(i) * vocabulary, logits.begin() + ptrdiff_t(i + 1) * vocabulary};
  }
};

/// The token that float64 chooses, -1 where rounding may decide.
int32_t token_in_float64(const std::vector<float>& logits, const Sampling& s, int32_t position) {
  const uint32_t bits = philox4x32({{uint32_t(position) + 1, 0, 0, 0}}, s.seed_low, s.seed_high).word[0];
  const Distribution d = truncate(penalised(logits, s, {}, {}), s);
  return d.ambiguous ? -1 : walk(d, double(bits >> 8) / (1 << 24));
}

struct Agreement {
  int rows = 0, other = 0, undecided = 0;
};

/// Every row has the token that the CPU has. Where it does not, rounding must be what decides.
void check_rows(const Rows& rows, int32_t capacity, Agreement& agreement) {
  Sampler cpu(rows.vocabulary, int32_t(rows.batch.rows.size()));
  CudaSampler gpu(cpu, capacity);
  const std::vector<Result> results = gpu.run(rows.batch, rows.logits);
  const std::vector<Result> expected = cpu.run(rows.batch, rows.logits);
  const std::vector<Slot> slots = gpu.slots();
  for (size_t i = 0; i < results.size(); ++i) {
    ++agreement.rows;
    CHECK_EQ(slots[i].token, results[i].token);
    if (results[i].token == expected[i].token) {
      check_same_result(results[i], expected[i]);
      CHECK(slots[i] == cpu.slots[i]);
      continue;
    }
    ++agreement.other;
    const int32_t decided =
        token_in_float64(rows.row(i), rows.batch.sampling[i], rows.batch.sequences[i].position);
    if (decided < 0) {
      ++agreement.undecided;
    } else {
      CHECK_EQ(results[i].token, decided);
      CHECK_EQ(expected[i].token, decided);
    }
  }
}

void check_agreement(const Agreement& agreement) {
  if (agreement.other > 0) {
    std::printf("    %d of %d rows have another token than the CPU, %d of them undecided in float64\n",
                agreement.other, agreement.rows, agreement.undecided);
  }
  CHECK(agreement.rows > 0);
  CHECK(agreement.other <= agreement.rows / 100);
}

Sampling random_sampling(Random& random, int32_t vocabulary) {
  Sampling s = plain_sampling();
  s.temperature = random.below(4) == 0 ? 1.0f : float(0.2 + 2 * random.uniform());
  if (random.below(2))
    s.top_k = 1 + random.below(random.below(2) ? vocabulary + 5 : std::min(vocabulary, 60));
  if (random.below(2)) s.top_p = float(random.below(4) ? random.uniform() : 1 - 0.1 * random.uniform());
  if (random.below(2)) s.min_p = float(random.uniform() * random.uniform());
  if (random.below(4) == 0) s.logprobs = random.below(kTopLogprobs + 1);
  s.seed_low = uint32_t(random.bits());
  s.seed_high = uint32_t(random.bits());
  return s;
}

/// Logits as a model makes them, flat ones, ones with many ties, and ones that are all the same.
std::vector<float> random_logits(Random& random, int32_t vocabulary, int kind) {
  std::vector<float> logits = random.normals(size_t(vocabulary), kind == 1 ? 0.1 : 3);
  for (float& logit : logits) {
    if (kind == 2) logit = std::round(logit * 2) / 2;
    if (kind == 3) logit = -1.5f;
    if (kind == 4 && random.below(300) == 0) logit += 12;
    if (kind == 5 && random.below(3) == 0) logit = random.below(2) ? -kInfinity : std::nanf("");
  }
  return logits;
}

}  // namespace

TEST(cuda_sample_greedy) {
  Sampling greedy = plain_sampling();
  greedy.temperature = 0;
  const float nan = std::nanf("");
  const std::vector<std::vector<float>> all = {
      {1, 3, 2, 3},         {nan, -kInfinity, -1e30f, nan}, {nan, 5, kInfinity, kInfinity},
      {nan, nan, nan, nan}, {-0.0f, 0.0f, -1, -0.0f},       {-5, -4, -4, -3e38f}};
  for (const float temperature : {0.0f, 1.0f, 1e-30f}) {
    for (int32_t position = 0; position < (on_gpu() ? 20 : 6); ++position) {
      Rows rows(4);
      greedy.temperature = temperature;
      for (const auto& logits : all) rows.add(logits, greedy, position);
      Agreement agreement;
      check_rows(rows, 6, agreement);
      CHECK_EQ(agreement.other, 0);
    }
  }
}

TEST(cuda_sample_greedy_large) {
  // Ties between tokens that different lanes, warps and blocks see.
  Random random(2);
  Sampling greedy = plain_sampling();
  greedy.temperature = 0;
  for (const int32_t vocabulary : {1, 2, 129, 4095, 4097, 20001, 131072}) {
    for (const int32_t capacity : {1, 3, 8}) {
      Rows rows(vocabulary);
      for (int32_t row = 0; row < std::min(capacity, 3); ++row) {
        std::vector<float> logits = random_logits(random, vocabulary, 2);
        for (int i = 0; i < 3; ++i) logits[size_t(random.below(vocabulary))] = 99;
        rows.add(logits, greedy, 5);
      }
      Agreement agreement;
      check_rows(rows, capacity, agreement);
      CHECK_EQ(agreement.other, 0);
    }
  }
}

TEST(cuda_sample_oracle) {
  Random random(1);
  Agreement agreement;
  const int trials = on_gpu() ? 3000 : 120;
  for (int trial = 0; trial < trials; ++trial) {
    const int32_t vocabulary = trial % 25 == 0 ? 3000 + random.below(9000) : 1 + random.below(700);
    Rows rows(vocabulary);
    for (int row = 0; row < 3; ++row) {
      rows.add(random_logits(random, vocabulary, random.below(6)), random_sampling(random, vocabulary),
               random.below(1 << 20));
    }
    check_rows(rows, 3 + random.below(3), agreement);
  }
  check_agreement(agreement);
}

TEST(cuda_sample_oracle_large) {
  Random random(7);
  Agreement agreement;
  const int trials = on_gpu() ? 60 : 1;
  for (int trial = 0; trial < trials; ++trial) {
    Rows rows(131072);
    for (int kind = 0; kind < 6; ++kind) {
      for (int row = 0; row < (on_gpu() ? 4 : 1); ++row)
        rows.add(random_logits(random, rows.vocabulary, kind), random_sampling(random, rows.vocabulary),
                 random.below(1 << 20));
    }
    check_rows(rows, 24, agreement);
  }
  check_agreement(agreement);
}

TEST(cuda_sample_truncations_of_many_ties) {
  // More equal tokens than are compared at once: the cut falls between ids.
  Random random(3);
  Agreement agreement;
  for (const int32_t vocabulary : {600, 5000}) {
    for (int trial = 0; trial < 6; ++trial) {
      Rows rows(vocabulary);
      for (const auto& [k, p, min_p] :
           {std::tuple{400, 1.0f, 0.0f}, std::tuple{0, 0.7f, 0.0f}, std::tuple{0, 1.0f, 0.3f},
            std::tuple{500, 0.9f, 0.0f}, std::tuple{550, 0.8f, 0.5f}, std::tuple{0, 1.0f, 1.5f}}) {
        std::vector<float> logits(size_t(vocabulary), 2.0f);
        for (int i = 0; i < trial; ++i) logits[size_t(random.below(vocabulary))] = 3.0f;
        Sampling s = plain_sampling();
        s.top_k = k;
        s.top_p = p;
        s.min_p = min_p;
        s.seed_low = uint32_t(random.bits());
        rows.add(logits, s, trial);
      }
      check_rows(rows, 6, agreement);
    }
  }
  check_agreement(agreement);
}

TEST(cuda_sample_small_top_k) {
  // The best tokens lie apart, next to each other, or are more equals than one block orders.
  Random random(9);
  Agreement agreement;
  constexpr int32_t kVocabulary = 33000;
  Rows rows(kVocabulary);
  for (const int32_t k : {1, 2, 40, 100, 128, 129}) {
    for (int kind = 0; kind < 4; ++kind) {
      std::vector<float> logits = random_logits(random, kVocabulary, kind == 3 ? 3 : 0);
      if (kind == 1 || kind == 2) {
        const int32_t first = random.below(kVocabulary - 600);
        for (int i = 0; i < 600; ++i)
          logits[size_t(first + i)] = float(20 + (kind == 1 ? random.normal() : i / 50));
      }
      Sampling s = plain_sampling();
      s.top_k = k;
      if (random.below(2)) s.top_p = 0.8f;
      if (random.below(2)) s.min_p = 0.1f;
      if (random.below(2)) s.logprobs = kTopLogprobs;
      s.seed_low = uint32_t(random.bits());
      rows.add(logits, s, k);
    }
  }
  check_rows(rows, 24, agreement);
  check_agreement(agreement);
}

TEST(cuda_sample_logprobs) {
  Random random(8);
  for (const int32_t vocabulary : {1, 3, 19, 20, 500, 9000}) {
    Rows rows(vocabulary);
    for (const int32_t count : {0, 1, 5, kTopLogprobs}) {
      for (const float temperature : {0.0f, 0.5f}) {
        Sampling s = plain_sampling();
        s.temperature = temperature;
        s.logprobs = count;
        rows.add(random_logits(random, vocabulary, 2), s, 77);
      }
    }
    Agreement agreement;
    check_rows(rows, int32_t(rows.batch.rows.size()), agreement);
    CHECK_EQ(agreement.other, 0);
  }
  Sampling s = plain_sampling();
  s.logprobs = 3;
  s.temperature = 0;
  Rows rows(3);
  rows.add({1e30f, -1e30f, std::nanf("")}, s, 0);
  rows.add({kInfinity, 4, kInfinity}, s, 0);
  rows.add({-kInfinity, std::nanf(""), -kInfinity}, s, 0);
  Agreement agreement;
  check_rows(rows, 3, agreement);
  CHECK_EQ(agreement.other, 0);
}

TEST(cuda_sample_is_the_same_every_time) {
  Random random(5);
  Rows rows(10000);
  for (int kind = 0; kind < 6; ++kind) {
    Sampling s = random_sampling(random, rows.vocabulary);
    s.logprobs = 4;
    rows.add(random_logits(random, rows.vocabulary, kind), s, kind);
  }
  const Sampler start(rows.vocabulary, 6);
  const std::vector<Result> first = CudaSampler(start, 6).run(rows.batch, rows.logits);
  for (int i = 0; i < (on_gpu() ? 50 : 2); ++i)
    CHECK(CudaSampler(start, 6).run(rows.batch, rows.logits) == first);
}

TEST(cuda_sample_refuses) {
  SampleArgs args{};
  args.vocabulary = (1 << 19) + 1;
  CHECK_EQ(int(sample_cuda(args, 1, nullptr, nullptr, cuda_target())), int(cudaErrorInvalidValue));
  args.vocabulary = 8;
  CHECK_EQ(int(sample_cuda(args, 0, nullptr, nullptr, cuda_target())), int(cudaErrorInvalidValue));
}

}  // namespace nibblet::test
