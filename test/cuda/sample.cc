#include "test/cuda/sample_rows.h"

// The choice of a token and log probabilities where they are hard. test/cuda/sample_oracle.cc draws them at random.
namespace nibblet::test {

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

TEST(cuda_sample_refuses) {
  SampleArgs args{};
  args.vocabulary = (1 << 19) + 1;
  CHECK_EQ(int(sample_cuda(args, 1, nullptr, nullptr, cuda_target())), int(cudaErrorInvalidValue));
  args.vocabulary = 8;
  CHECK_EQ(int(sample_cuda(args, 0, nullptr, nullptr, cuda_target())), int(cudaErrorInvalidValue));
}

}  // namespace nibblet::test
