#include <algorithm>

#include "kernels/pack/layout.h"
#include "test/kernels/inputs.h"
#include "test/kernels/moe_layer.h"

namespace nibblet::test {
namespace {

MoeShape shape_with(bool columns) {
  return {64, 16, 3, 48, 96, 1, 1, Format::nvfp4, Layout::panels, false, true, true, columns};
}

struct Counted {
  std::vector<uint64_t> counters;
  uint64_t matrices(const ExpertWeights& routed, const ExpertWeights& shared) const {
    const auto touched = std::count_if(counters.begin() + kMoeExperts, counters.end(),
                                       [](uint64_t tokens) { return tokens > 0; });
    return uint64_t(touched) * routed.view.matrix_bytes + shared.view.matrix_bytes;
  }
};

Counted count(MoeLayer& layer, int32_t tokens, int workers = 1) {
  Counted result{std::vector<uint64_t>(size_t(kMoeExperts) + layer.shape.experts)};
  const std::vector<float> x = Random(5).normals(size_t(tokens) * layer.shape.hidden, 2);
  layer.run(x, workers, result.counters.data());
  return result;
}

}  // namespace

TEST(moe_statistics_count_tokens_and_zeros) {
  constexpr int32_t kTokens = 5;
  MoeLayer layer(shape_with(false), 3);
  const Counted one = count(layer, kTokens);
  const auto& c = one.counters;
  CHECK_EQ(c[kMoeActivations], uint64_t(kTokens * (3 * 48 + 96)));
  uint64_t tokens = 0;
  for (size_t e = kMoeExperts; e < c.size(); ++e) tokens += c[e];
  CHECK_EQ(tokens, uint64_t(kTokens * 3));
  // Random weights leave about half at zero.
  CHECK(c[kMoeZeros] * 10 > c[kMoeActivations] * 4 && c[kMoeZeros] * 10 < c[kMoeActivations] * 6);
  CHECK_EQ(c[kMoeWeightBytes],
           one.matrices(layer.up, layer.shared_up) + one.matrices(layer.down, layer.shared_down));
  CHECK(count(layer, kTokens, 3).counters == c);

  MoeLayer columns(shape_with(true), 3);
  const Counted other = count(columns, kTokens);
  CHECK_EQ(other.counters[kMoeZeros], c[kMoeZeros]);
  CHECK(std::equal(c.begin() + kMoeExperts, c.end(), other.counters.begin() + kMoeExperts));
}

TEST(moe_statistics_count_the_columns_that_are_read) {
  constexpr int32_t kTokens = 4;
  MoeLayer layer(shape_with(true), 3);
  const auto with_bias = [&](float bias) {
    std::fill(layer.up_bias.begin(), layer.up_bias.end(), bias);
    std::fill(layer.shared_up_bias.begin(), layer.shared_up_bias.end(), bias);
  };
  with_bias(-1e6f);
  const Counted none = count(layer, kTokens);
  CHECK_EQ(none.counters[kMoeZeros], none.counters[kMoeActivations]);
  CHECK_EQ(none.counters[kMoeWeightBytes], none.matrices(layer.up, layer.shared_up));

  with_bias(1e6f);
  const Counted all = count(layer, kTokens);
  CHECK_EQ(all.counters[kMoeZeros], 0u);
  const uint64_t every =
      all.matrices(layer.up, layer.shared_up) + all.matrices(layer.down, layer.shared_down);
  CHECK_EQ(all.counters[kMoeWeightBytes], every);

  // One live activation in the shared expert: its column, and the scales of its block.
  with_bias(-1e6f);
  layer.shared_up_bias[17] = 1e6f;
  const Counted one = count(layer, kTokens);
  const uint64_t column = column_bytes(64);
  CHECK_EQ(one.counters[kMoeWeightBytes] - none.counters[kMoeWeightBytes], column + 2 * column);
}

}  // namespace nibblet::test
