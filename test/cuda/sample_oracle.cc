#include "test/cuda/sample_rows.h"

// Random rows, and that the same row gives the same bits.
namespace nibblet::test {
namespace {

void add_random(Rows& rows, Random& random, int kind) {
  std::vector<float> logits = random_logits(random, rows.vocabulary, kind);
  rows.add(logits, random_sampling(random, rows.vocabulary), random.below(1 << 20));
}

/// One step of `count` random rows.
void check_step(Random& random, int32_t vocabulary, int count, Agreement& agreement) {
  Rows rows(vocabulary);
  for (int row = 0; row < count; ++row) add_random(rows, random, random.below(kLogitKinds));
  check_rows(rows, count + random.below(3), agreement);
}

/// The vocabularies above `last` - kRange up to it. On a GPU every one of them has a step, of 3 rows or of 21 by turns: a
/// step costs far more than its rows.
void check_small(int32_t last, uint64_t seed) {
  constexpr int32_t kRange = 140;
  Random random(seed);
  Agreement agreement;
  for (int step = 0; step < (on_gpu() ? 144 : 23); ++step) {
    const int32_t below = on_gpu() ? step % kRange : random.below(kRange);
    // Those that come around a second time have the other number of rows.
    const bool many = on_gpu() && (step % 2 == 1) == (step < kRange);
    check_step(random, last - below, many ? 21 : 3, agreement);
  }
  check_agreement(agreement);
}

/// A part of the large steps; on the emulator a row of one kind.
void check_large(int part) {
  Random random(uint64_t(7 + part));
  Agreement agreement;
  for (int step = 0; step < (on_gpu() ? 10 : 1); ++step) {
    Rows rows(131072);
    if (on_gpu()) {
      for (int row = 0; row < 4 * kLogitKinds; ++row) add_random(rows, random, row / 4);
    } else {
      add_random(rows, random, part);
    }
    check_rows(rows, 24, agreement);
  }
  check_agreement(agreement);
}

/// Fresh state and memory for some runs, what earlier ones left there for the others.
void check_same_bits(int part) {
  Random random(uint64_t(5 + part));
  Rows rows(10000);
  for (int kind = 0; kind < kLogitKinds; ++kind) {
    Sampling s = random_sampling(random, rows.vocabulary);
    s.logprobs = 4;
    rows.add(random_logits(random, rows.vocabulary, kind), s, kind);
  }
  const Sampler start(rows.vocabulary, 6);
  const std::vector<Result> first = CudaSampler(start, 6).run(rows.batch, rows.logits);
  for (int fresh = 0; fresh < (on_gpu() ? 5 : 1); ++fresh) {
    CudaSampler gpu(start, 6);
    for (int run = 0; run < (on_gpu() ? 2 : 1); ++run) CHECK(gpu.run(rows.batch, rows.logits) == first);
  }
}

}  // namespace

TEST(cuda_sample_oracle_1_to_140) { check_small(140, 1); }
TEST(cuda_sample_oracle_141_to_280) { check_small(280, 2); }
TEST(cuda_sample_oracle_281_to_420) { check_small(420, 3); }
TEST(cuda_sample_oracle_421_to_560) { check_small(560, 4); }
TEST(cuda_sample_oracle_561_to_700) { check_small(700, 5); }
TEST(cuda_sample_oracle_thousands) {
  Random random(6);
  Agreement agreement;
  for (int step = 0; step < (on_gpu() ? 120 : 5); ++step) {
    check_step(random, 3000 + random.below(9000), 3, agreement);
  }
  check_agreement(agreement);
}

TEST(cuda_sample_oracle_large_1) { check_large(0); }
TEST(cuda_sample_oracle_large_2) { check_large(1); }
TEST(cuda_sample_oracle_large_3) { check_large(2); }
TEST(cuda_sample_oracle_large_4) { check_large(3); }
TEST(cuda_sample_oracle_large_5) { check_large(4); }
TEST(cuda_sample_oracle_large_6) { check_large(5); }

TEST(cuda_sample_is_the_same_every_time_1) { check_same_bits(0); }
TEST(cuda_sample_is_the_same_every_time_2) { check_same_bits(1); }
TEST(cuda_sample_is_the_same_every_time_3) { check_same_bits(2); }
TEST(cuda_sample_is_the_same_every_time_4) { check_same_bits(3); }
TEST(cuda_sample_is_the_same_every_time_5) { check_same_bits(4); }

}  // namespace nibblet::test
