#pragma once

#include "kernels/sample/philox.h"
#include "test/cuda/sampler.h"
#include "test/kernels/distribution.h"

/// Rows of random logits and parameters, held to the CPU and, where it differs, to float64.
namespace nibblet::test {

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
inline int32_t token_in_float64(const std::vector<float>& logits, const Sampling& s, int32_t position) {
  const uint32_t bits = philox4x32({{uint32_t(position) + 1, 0, 0, 0}}, s.seed_low, s.seed_high).word[0];
  const Distribution d = truncate(penalised(logits, s, {}, {}), s);
  return d.ambiguous ? -1 : walk(d, double(bits >> 8) / (1 << 24));
}

struct Agreement {
  int rows = 0, other = 0, undecided = 0;
};

/// Every row has the token that the CPU has. Where it does not, rounding must be what decides.
inline void check_rows(const Rows& rows, int32_t capacity, Agreement& agreement) {
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

inline void check_agreement(const Agreement& agreement) {
  if (agreement.other > 0) {
    std::printf("    %d of %d rows have another token than the CPU, %d of them undecided in float64\n",
                agreement.other, agreement.rows, agreement.undecided);
  }
  CHECK(agreement.rows > 0);
  // One in a hundred, and what chance adds where the rows are few.
  const double expected = agreement.rows / 100.0;
  CHECK(agreement.other <= expected + 3 * std::sqrt(expected));
}

inline Sampling random_sampling(Random& random, int32_t vocabulary) {
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

/// Normal numbers from a random place of a fixed list of them: drawing 131,072 takes longer than sampling from them.
inline std::vector<float> random_normals(Random& random, int32_t count, double scale) {
  static const std::vector<float> drawn = Random(11).normals(size_t{1} << 18);
  size_t at = size_t(random.below(int32_t(drawn.size())));
  std::vector<float> values;
  values.reserve(size_t(count));
  for (int32_t i = 0; i < count; ++i, ++at) values.push_back(float(scale * drawn[at % drawn.size()]));
  return values;
}

constexpr int kLogitKinds = 6;

/// Logits as a model makes them, flat ones, ones with many ties, ones that are all the same, ones with a few that stand
/// out, and ones that are masked.
inline std::vector<float> random_logits(Random& random, int32_t vocabulary, int kind) {
  std::vector<float> logits = random_normals(random, vocabulary, kind == 1 ? 0.1 : 3);
  for (float& logit : logits) {
    if (kind == 2) logit = std::round(logit * 2) / 2;
    if (kind == 3) logit = -1.5f;
    if (kind == 4 && random.below(300) == 0) logit += 12;
    if (kind == 5 && random.below(3) == 0) logit = random.below(2) ? -kInfinity : std::nanf("");
  }
  return logits;
}

}  // namespace nibblet::test
