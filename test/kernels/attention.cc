#include "kernels/attention/attention.h"

#include <algorithm>

#include "test/kernels/batch.h"
#include "test/kernels/bounded.h"
#include "test/kernels/inputs.h"

namespace nibblet::test {
namespace {

struct Shape {
  int32_t heads, kv_heads, head_dim;
  DType type, cache_type;
  int32_t row() const { return (heads + 2 * kv_heads) * head_dim; }
  int32_t width() const { return heads * head_dim; }
};

const Shape kShapes[] = {
    {32, 2, 128, DType::bf16, DType::e4m3},  // Nano
    {8, 2, 64, DType::bf16, DType::e4m3},   {8, 2, 64, DType::bf16, DType::bf16},
    {6, 3, 20, DType::f32, DType::f32},     {5, 5, 7, DType::f32, DType::e4m3},
    {1, 1, 1, DType::bf16, DType::bf16},    {18, 1, 33, DType::bf16, DType::f32},
    {2, 1, 300, DType::f32, DType::bf16},  // wider than the blocks of the kernels
};

using Op = void (*)(const AttentionArgs&, int, int, int);

struct Layer {
  Shape shape;
  Elements cache;
  float k_scale = 0.75f;
  float v_scale = 1.5f;

  Layer(const Shape& s, int32_t pages)
      : shape(s), cache(s.cache_type, size_t(pages) * 2 * s.kv_heads * kPageTokens * s.head_dim) {}

  Elements run(Op op, const Batch& batch, const Elements& qkv, const Slot* slots = nullptr, int workers = 1) {
    const Step step = batch.step();
    Elements y(shape.type, size_t(step.tokens) * shape.width());
    const AttentionArgs args = {&step,          slots,          shape.heads,
                                shape.kv_heads, shape.head_dim, 1 / std::sqrt(float(shape.head_dim)),
                                shape.type,     qkv.data(),     shape.cache_type,
                                cache.data(),   k_scale,        v_scale,
                                y.data()};
    run_phases(op, kAttentionPhases, args, workers);
    return y;
  }

  /// Cached element of a page, `part` 0 for keys and 1 for values, without its scale.
  float cached(int32_t page, int32_t part, int32_t head, int32_t offset, int32_t i) const {
    return cache[(((size_t(page) * 2 + part) * shape.kv_heads + head) * kPageTokens + offset) *
                     shape.head_dim +
                 i];
  }
};

Elements random_rows(const Shape& shape, int32_t tokens, uint64_t seed, double scale = 1.5) {
  Random random(seed);
  return Elements(shape.type, random.normals(size_t(tokens) * shape.row(), scale));
}

/// What the cache keeps of a key (part 0) or value.
double kept(const Layer& layer, float value, int32_t part) {
  const float scale = part == 0 ? layer.k_scale : layer.v_scale;
  switch (layer.shape.cache_type) {
    case DType::e4m3:
      return double(e4m3_to_float(e4m3_from_float(value / scale))) * scale;
    case DType::bf16:
      return round_to_bf16(value);
    default:
      return value;
  }
}

/// Attention of token `t` of a sequence whose rows from position 0 are `qkv`.
std::vector<Bounded> oracle(const Layer& layer, const Elements& qkv, int32_t t) {
  const Shape& s = layer.shape;
  std::vector<Bounded> y(s.width());
  const auto input = [&](int32_t j, int32_t head, int32_t i) {
    return qkv[size_t(j) * s.row() + size_t(head) * s.head_dim + i];
  };
  for (int32_t h = 0; h < s.heads; ++h) {
    const int32_t g = h / (s.heads / s.kv_heads);
    std::vector<Bounded> scores(t + 1);
    double largest = -1e300;
    for (int32_t j = 0; j <= t; ++j) {
      BoundedSum sum;
      for (int32_t i = 0; i < s.head_dim; ++i) {
        sum.add(Bounded(input(t, h, i)) * rounded(kept(layer, input(j, s.heads + g, i), 0), 0));
      }
      scores[j] = sum.total(20 + s.head_dim / 16) * Bounded(1 / std::sqrt(float(s.head_dim)));
      largest = std::max(largest, scores[j].value);
    }
    std::vector<Bounded> weights(t + 1);
    BoundedSum total;
    for (int32_t j = 0; j <= t; ++j) {
      // The largest score is subtracted with its own error, which all weights share: it cancels in the quotient.
      weights[j] = exp(scores[j] - Bounded(largest));
      total.add(weights[j]);
    }
    // One after another, or by pages with a running maximum, which rescales the sums once a page.
    const int64_t additions = t + 1 + 8 * (t / kPageTokens + 1);
    for (int32_t i = 0; i < s.head_dim; ++i) {
      BoundedSum sum;
      for (int32_t j = 0; j <= t; ++j) {
        sum.add(weights[j] * rounded(kept(layer, input(j, s.heads + s.kv_heads + g, i), 1), 0));
      }
      y[h * s.head_dim + i] = stored(sum.total(additions) / total.total(additions), s.type);
    }
  }
  return y;
}

void check_against_oracle(Op op) {
  for (const Shape& shape : kShapes) {
    const int32_t tokens = shape.heads == 32 ? 80 : 150;
    Layer layer(shape, 6);
    const Elements qkv = random_rows(shape, tokens, 3);
    Batch batch(4);
    batch.add(0, 0, tokens, 0, {5, 2, 4});
    const Elements y = layer.run(op, batch, qkv);
    for (const int32_t t : {0, 1, 62, 63, 64, 79, tokens - 1}) {
      const std::vector<Bounded> expected = oracle(layer, qkv, t);
      for (int32_t i = 0; i < shape.width(); ++i) {
        CHECK_NEAR(y[size_t(t) * shape.width() + i], expected[i].value, expected[i].error);
      }
    }
    for (const int32_t part : {0, 1}) {
      const float scale = shape.cache_type != DType::e4m3 ? 1 : part == 0 ? layer.k_scale : layer.v_scale;
      const int32_t head = shape.kv_heads - 1;
      for (int32_t i = 0; i < shape.head_dim; ++i) {
        const size_t from =
            70 * size_t(shape.row()) + size_t(shape.heads + part * shape.kv_heads + head) * shape.head_dim;
        CHECK_EQ(double(layer.cached(2, part, head, 70 - 64, i)) * scale, kept(layer, qkv[from + i], part));
      }
    }
    // Neither a page of no sequence nor the rest of the last page was written.
    CHECK(std::isnan(layer.cached(0, 0, 0, 0, 0)));
    CHECK(std::isnan(layer.cached(3, 1, 0, 63, 0)));
    CHECK(std::isnan(layer.cached(shape.heads == 32 ? 2 : 4, 1, 0, 63, 0)));
  }
}

void check_pieces(Op op) {
  for (const Shape& shape : kShapes) {
    const int32_t tokens = shape.heads == 32 ? 70 : 140;
    const Elements qkv = random_rows(shape, tokens, 4);
    Layer whole(shape, 3);
    Batch all(3);
    all.add(0, 0, tokens, 0, {1, 0, 2});
    const Elements y = whole.run(op, all, qkv);
    for (const int32_t size : {1, 7, 64}) {
      Layer layer(shape, 3);
      for (int32_t position = 0; position < tokens; position += size) {
        const int32_t count = std::min(size, tokens - position);
        Batch batch(3);
        batch.add(0, position, count, 0, {1, 0, 2});
        const Elements part =
            layer.run(op, batch, qkv.part(size_t(position) * shape.row(), size_t(count) * shape.row()));
        CHECK(part == y.part(size_t(position) * shape.width(), part.size()));
      }
      CHECK(layer.cache == whole.cache);
    }
  }
}

void check_batch(Op op) {
  for (const Shape& shape : kShapes) {
    Layer start(shape, 10);
    Batch before(3);
    before.add(0, 0, 100, 0, {0, 1});
    before.add(2, 0, 64, 0, {2});
    before.add(3, 0, 5, 0, {4});
    start.run(op, before, random_rows(shape, 169, 5));
    std::vector<Slot> slots(5);
    slots[0].active = 1;
    slots[2].active = 1;
    Batch batch(3);
    batch.add(2, 64, 1, kDecode, {2, 3});
    batch.add(3, 5, 1, kDecode, {4});  // not active
    batch.add(0, 100, 1, kDecode, {0, 1});
    batch.add(4, 0, 66, 0, {9, 5});
    batch.add(1, 0, 3, 0, {7});
    const Elements qkv = random_rows(shape, int32_t(batch.ids.size()), 6);
    Layer together = start;
    const Elements y = together.run(op, batch, qkv, slots.data());

    Layer apart = start;
    const std::vector<std::vector<int32_t>> pages = {{2, 3}, {4}, {0, 1}, {9, 5}, {7}};
    for (size_t i = 0; i < pages.size(); ++i) {
      if (i == 1) continue;
      const Sequence& sequence = batch.sequences[i];
      Batch alone(3);
      alone.add(sequence.slot, sequence.position, sequence.count, sequence.flags, pages[i]);
      const Elements part = apart.run(
          op, alone, qkv.part(size_t(sequence.first) * shape.row(), size_t(sequence.count) * shape.row()),
          slots.data());
      CHECK(part == y.part(size_t(sequence.first) * shape.width(), part.size()));
    }
    // The cache of the idle row is among what is compared.
    CHECK(apart.cache == together.cache);

    for (const int workers : {2, 3, 7}) {
      Layer split = start;
      const Elements other = split.run(op, batch, qkv, slots.data(), workers);
      CHECK(split.cache == together.cache);
      const size_t row = shape.width();
      CHECK(other.part(0, row) == y.part(0, row));
      CHECK(other.part(2 * row, y.size() - 2 * row) == y.part(2 * row, y.size() - 2 * row));
    }
  }
}

void check_extremes(Op op) {
  const Shape shape = {2, 1, 16, DType::f32, DType::e4m3};
  Layer layer(shape, 1);
  layer.k_scale = 1;
  layer.v_scale = 0.5f;
  std::vector<float> values(2 * size_t(shape.row()), 0.0f);
  const size_t key = size_t(shape.width());
  const size_t value = key + shape.head_dim;
  values[key] = 1e4f;
  values[key + 1] = -1e30f;
  values[key + 2] = 0x1p-12f;
  values[value] = 1e9f;
  values[value + 1] = -300.0f;
  values[value + 2] = 0x1p-10f;
  // The second token's scores are -89600 and 0: only exact zero weights keep the first value out.
  values[shape.row()] = -800.0f;
  Batch batch(1);
  batch.add(0, 0, 2, 0, {0});
  const Elements y = layer.run(op, batch, Elements(DType::f32, values));
  CHECK_EQ(layer.cached(0, 0, 0, 0, 0), 448.0f);
  CHECK_EQ(layer.cached(0, 0, 0, 0, 1), -448.0f);
  CHECK_EQ(layer.cached(0, 0, 0, 0, 2), 0.0f);
  CHECK_EQ(y[0], 224.0f);
  CHECK_EQ(y[1], -224.0f);
  CHECK_EQ(y[2], 0x1p-10f);
  CHECK_EQ(y[size_t(shape.width())], 0.0f);
}

/// A NaN reaches the tokens from its own position on, whatever the cache holds it as.
void check_nan(Op op) {
  for (const Shape& shape : kShapes) {
    Elements qkv = random_rows(shape, 40, 8);
    std::vector<float> values;
    for (size_t i = 0; i < qkv.size(); ++i) values.push_back(qkv[i]);
    for (int32_t h = 0; h < shape.kv_heads; ++h) {
      const size_t head = size_t(shape.heads + shape.kv_heads + h) * shape.head_dim;
      values[35 * size_t(shape.row()) + head] = std::nanf("");
    }
    Layer layer(shape, 1);
    Batch batch(1);
    batch.add(0, 0, 40, 0, {0});
    const Elements y = layer.run(op, batch, Elements(shape.type, values));
    for (const int32_t t : {0, 32, 34, 35, 39}) {
      for (int32_t h = 0; h < shape.heads; ++h) {
        CHECK_EQ(std::isnan(y[(size_t(t) * shape.heads + h) * shape.head_dim]), t >= 35);
      }
    }
  }
}

}  // namespace

TEST(attention_reference_oracle) { check_against_oracle(attention_reference); }
TEST(attention_reference_pieces) { check_pieces(attention_reference); }
TEST(attention_reference_batch) { check_batch(attention_reference); }
TEST(attention_reference_extremes) { check_extremes(attention_reference); }
TEST(attention_reference_nan) { check_nan(attention_reference); }
TEST(attention_oracle) {
  for_each_cpu_variant([] { check_against_oracle(attention); });
}
TEST(attention_pieces) {
  for_each_cpu_variant([] { check_pieces(attention); });
}
TEST(attention_batch) {
  for_each_cpu_variant([] { check_batch(attention); });
}
TEST(attention_extremes) {
  for_each_cpu_variant([] { check_extremes(attention); });
}
TEST(attention_nan) {
  for_each_cpu_variant([] { check_nan(attention); });
}

}  // namespace nibblet::test
