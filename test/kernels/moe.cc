#include "kernels/moe/moe.h"

#include "test/kernels/inputs.h"
#include "test/kernels/moe_layer.h"

namespace nibblet::test {
namespace {

constexpr Format f32 = Format::f32, bf16 = Format::bf16, e4m3 = Format::e4m3, nvfp4 = Format::nvfp4;
constexpr Layout rows = Layout::rows, panels = Layout::panels;

const MoeShape kShapes[] = {
    {64, 128, 6, 48, 96, 1, 1, nvfp4, rows},  // Nano's routing
    {64, 128, 6, 48, 96, 1, 1, nvfp4, panels},
    {384, 32, 4, 64, 128, 1, 1, nvfp4, panels},  // the bundled model's
    {384, 32, 4, 96, 384, 1, 1, nvfp4, panels, false, true, false, true},
    {48, 12, 3, 16, 48, 1, 1, nvfp4, panels, false, true, true, true},
    {64, 32, 4, 16, 0, 8, 3, bf16, panels},                  // groups, no shared expert
    {20, 12, 3, 13, 7, 4, 2, f32, rows, true, false, true},  // nothing a multiple of 16, biases, exact
    {20, 12, 3, 13, 7, 6, 2, bf16, panels, false, true, true},
    {37, 9, 1, 40, 41, 9, 1, e4m3, panels, false, true, false},  // groups of one expert
    {48, 5, 5, 80, 33, 1, 1, e4m3, rows, true, true, false},     // all experts
};

std::vector<float> random_rows(const MoeShape& shape, int32_t tokens, uint64_t seed) {
  return Random(seed).normals(size_t(tokens) * shape.hidden, 2);
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

void check_oracle(const MoeShape& shape, int32_t tokens) {
  MoeLayer layer(shape, 3);
  const std::vector<float> x = random_rows(shape, tokens, 17);
  std::vector<Bounded> expected[2];  // whether in block floating point
  for (int32_t t = 0; t < tokens; ++t) {
    for (const bool bfp : {false, true}) {
      double margin = 1;
      const std::vector<Bounded> y = layer.oracle(x.data() + t * shape.hidden, margin, bfp);
      CHECK(margin > 1e-5);  // the seed leaves no choice to rounding
      expected[bfp].insert(expected[bfp].end(), y.begin(), y.end());
    }
  }
  for_each_cpu_variant([&] {
    const std::vector<float> y = layer.run(x);
    const std::vector<Bounded>& bounds = expected[layer.block_floating_point()];
    for (size_t i = 0; i < y.size(); ++i) CHECK_NEAR(y[i], bounds[i].value, bounds[i].error);
  });
}

}  // namespace

TEST(moe_oracle) {
  for (const MoeShape& shape : kShapes) check_oracle(shape, 5);
}

TEST(moe_real_width) {
  check_oracle({2688, 4, 2, 1856, 3712, 1, 1, nvfp4, panels, false, true, false, true}, 1);
}

TEST(moe_columns_give_the_bits_of_panels) {
  MoeShape shape = {304, 16, 4, 96, 208, 1, 1, nvfp4, panels};
  MoeLayer dense(shape, 3);
  shape.columns = true;
  MoeLayer skipping(shape, 3);
  for_each_cpu_variant([&] {
    for (const int32_t tokens : {1, 3, 75}) {
      const std::vector<float> x = random_rows(shape, tokens, 31);
      const std::vector<float> expected = dense.run(x);
      for (const int workers : {1, 2, 5}) CHECK(same_bits(skipping.run(x, workers), expected));
    }
  });
}

TEST(moe_batch) {
  for (const MoeShape& shape : kShapes) {
    MoeLayer layer(shape, 5);
    // More than a tile of 32 tokens for the shared expert, and for some routed one.
    const int32_t tokens = 75;
    const std::vector<float> x = random_rows(shape, tokens, 23);
    for_each_cpu_variant([&] {
      const std::vector<float> together = layer.run(x);
      for (int32_t t = 0; t < tokens; t += 7) {
        const auto first = x.begin() + t * shape.hidden;
        const std::vector<float> alone = layer.run({first, first + shape.hidden});
        CHECK(std::memcmp(alone.data(), together.data() + t * shape.hidden, alone.size() * sizeof(float)) ==
              0);
      }
      for (const int workers : {2, 3, 7}) {
        CHECK(same_bits(layer.run(x, workers), together));
        const std::vector<float> one(x.begin(), x.begin() + shape.hidden);
        CHECK(same_bits(layer.run(one, workers), layer.run(one)));
      }
    });
  }
}

TEST(moe_ties) {
  // Equal scores: the lower experts win. Their biases differ, so the outputs tell which ran.
  MoeShape shape = {16, 8, 2, 16, 0, 1, 1, f32, rows, true, true, true};
  MoeLayer layer(shape, 9);
  std::fill(layer.router.begin(), layer.router.end(), 0.0f);
  std::fill(layer.bias.begin(), layer.bias.end(), -3.0f);
  const std::vector<float> x = random_rows(shape, 1, 2);
  double margin = 1;
  const auto check = [&](const std::vector<Bounded>& expected) {
    const std::vector<float> y = layer.run(x);
    for (size_t i = 0; i < y.size(); ++i) CHECK_NEAR(y[i], expected[i].value, expected[i].error);
  };
  check(layer.oracle(x.data(), margin));
  CHECK_EQ(margin, 0.0);
  // Groups that tie as well.
  layer.shape.groups = 4;
  layer.shape.topk_groups = 1;
  check(layer.oracle(x.data(), margin));
  layer.bias[6] = layer.bias[5] = -2.0f;  // one in each of two groups
  check(layer.oracle(x.data(), margin));
}

TEST(moe_nan) {
  // A NaN row stays in its row and does not crash the routing.
  for_each_cpu_variant([] {
    for (const MoeShape& shape : {kShapes[0], kShapes[1], kShapes[3]}) {
      MoeLayer layer(shape, 5);
      std::vector<float> x = random_rows(shape, 3, 29);
      const std::vector<float> clean = layer.run(x);
      const size_t row = shape.hidden;
      x[row + 1] = std::nanf("");
      const std::vector<float> y = layer.run(x);
      CHECK(std::memcmp(y.data(), clean.data(), row * sizeof(float)) == 0);
      CHECK(std::memcmp(y.data() + 2 * row, clean.data() + 2 * row, row * sizeof(float)) == 0);
      for (size_t i = row; i < 2 * row; ++i) CHECK(std::isnan(y[i]));
    }
  });
}

}  // namespace nibblet::test
