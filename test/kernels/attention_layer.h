#pragma once

#include <algorithm>
#include <functional>

#include "kernels/attention/attention.h"
#include "test/kernels/batch.h"
#include "test/kernels/bounded.h"

/// An attention layer, the oracle of what it computes, and the checks that every implementation passes.
namespace nibblet::test {

struct AttentionLayerShape {
  int32_t heads, kv_heads, head_dim;
  DType type, cache_type;
  int32_t row() const { return (heads + 2 * kv_heads) * head_dim; }
  int32_t width() const { return heads * head_dim; }
};

/// What an implementation runs on: the pages of the cache, and entries of args.slots.
struct AttentionSizes {
  int32_t pages, slots;
};
/// Runs all of attention() on a machine.
using AttentionRun = std::function<void(const AttentionArgs& args, const AttentionSizes& sizes)>;

/// A layer and the pages of its cache, which start as NaN.
struct AttentionLayer {
  AttentionLayerShape shape;
  int32_t pages;
  Elements cache;
  float k_scale = 0.75f;
  float v_scale = 1.5f;

  AttentionLayer(const AttentionLayerShape& s, int32_t page_count)
      : shape(s),
        pages(page_count),
        cache(s.cache_type, size_t(pages) * 2 * s.kv_heads * kPageTokens * s.head_dim) {}

  Elements run(const AttentionRun& run, const Batch& batch, const Elements& qkv,
               const std::vector<Slot>& slots = {}) {
    const Step step = batch.step();
    Elements y(shape.type, size_t(step.tokens) * shape.width());
    const AttentionArgs args = {&step,
                                slots.empty() ? nullptr : slots.data(),
                                shape.heads,
                                shape.kv_heads,
                                shape.head_dim,
                                1 / std::sqrt(float(shape.head_dim)),
                                shape.type,
                                qkv.data(),
                                shape.cache_type,
                                cache.data(),
                                k_scale,
                                v_scale,
                                y.data()};
    run(args, {pages, int32_t(slots.size())});
    return y;
  }

  /// Cached element of a page, `part` 0 for keys and 1 for values, without its scale.
  float cached(int32_t page, int32_t part, int32_t head, int32_t offset, int32_t i) const {
    return cache[(((size_t(page) * 2 + part) * shape.kv_heads + head) * kPageTokens + offset) *
                     shape.head_dim +
                 i];
  }
};

inline Elements random_attention_rows(const AttentionLayerShape& shape, int32_t tokens, uint64_t seed,
                                      double scale = 1.5) {
  Random random(seed);
  return Elements(shape.type, random.normals(size_t(tokens) * shape.row(), scale));
}

/// What the cache keeps of a key (part 0) or value.
inline double kept_in_cache(const AttentionLayer& layer, float value, int32_t part) {
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
inline std::vector<Bounded> attention_oracle(const AttentionLayer& layer, const Elements& qkv, int32_t t) {
  const AttentionLayerShape& s = layer.shape;
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
        sum.add(Bounded(input(t, h, i)) * rounded(kept_in_cache(layer, input(j, s.heads + g, i), 0), 0));
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
        sum.add(weights[j] * rounded(kept_in_cache(layer, input(j, s.heads + s.kv_heads + g, i), 1), 0));
      }
      y[h * s.head_dim + i] = stored(sum.total(additions) / total.total(additions), s.type);
    }
  }
  return y;
}

inline void check_attention_oracle(const AttentionRun& run, const std::vector<AttentionLayerShape>& shapes) {
  for (const AttentionLayerShape& shape : shapes) {
    const int32_t tokens = shape.heads == 32 ? 80 : 150;
    AttentionLayer layer(shape, 6);
    const Elements qkv = random_attention_rows(shape, tokens, 3);
    Batch batch(4);
    batch.add(0, 0, tokens, 0, {5, 2, 4});
    const Elements y = layer.run(run, batch, qkv);
    for (const int32_t t : {0, 1, 62, 63, 64, 79, tokens - 1}) {
      const std::vector<Bounded> expected = attention_oracle(layer, qkv, t);
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
        CHECK_EQ(double(layer.cached(2, part, head, 70 - 64, i)) * scale,
                 kept_in_cache(layer, qkv[from + i], part));
      }
    }
    // Neither a page of no sequence nor the rest of the last page was written.
    CHECK(std::isnan(layer.cached(0, 0, 0, 0, 0)));
    CHECK(std::isnan(layer.cached(3, 1, 0, 63, 0)));
    CHECK(std::isnan(layer.cached(shape.heads == 32 ? 2 : 4, 1, 0, 63, 0)));
  }
}

inline void check_attention_pieces(const AttentionRun& run, const std::vector<AttentionLayerShape>& shapes) {
  for (const AttentionLayerShape& shape : shapes) {
    const int32_t tokens = shape.heads == 32 ? 70 : 140;
    const Elements qkv = random_attention_rows(shape, tokens, 4);
    AttentionLayer whole(shape, 3);
    Batch all(3);
    all.add(0, 0, tokens, 0, {1, 0, 2});
    const Elements y = whole.run(run, all, qkv);
    for (const int32_t size : {1, 7, 64}) {
      AttentionLayer layer(shape, 3);
      for (int32_t position = 0; position < tokens; position += size) {
        const int32_t count = std::min(size, tokens - position);
        Batch batch(3);
        batch.add(0, position, count, 0, {1, 0, 2});
        const Elements part =
            layer.run(run, batch, qkv.part(size_t(position) * shape.row(), size_t(count) * shape.row()));
        CHECK(part == y.part(size_t(position) * shape.width(), part.size()));
      }
      CHECK(layer.cache == whole.cache);
    }
  }
}

inline void check_attention_batch(const AttentionRun& run, const std::vector<AttentionRun>& others,
                                  const std::vector<AttentionLayerShape>& shapes) {
  for (const AttentionLayerShape& shape : shapes) {
    AttentionLayer start(shape, 10);
    Batch before(3);
    before.add(0, 0, 100, 0, {0, 1});
    before.add(2, 0, 64, 0, {2});
    before.add(3, 0, 5, 0, {4});
    start.run(run, before, random_attention_rows(shape, 169, 5));
    std::vector<Slot> slots(5);
    slots[0].active = 1;
    slots[2].active = 1;
    Batch batch(3);
    batch.add(2, 64, 1, kDecode, {2, 3});
    batch.add(3, 5, 1, kDecode, {4});  // not active
    batch.add(0, 100, 1, kDecode, {0, 1});
    batch.add(4, 0, 66, 0, {9, 5});
    batch.add(1, 0, 3, 0, {7});
    const Elements qkv = random_attention_rows(shape, int32_t(batch.ids.size()), 6);
    AttentionLayer together = start;
    const Elements y = together.run(run, batch, qkv, slots);

    AttentionLayer apart = start;
    const std::vector<std::vector<int32_t>> pages = {{2, 3}, {4}, {0, 1}, {9, 5}, {7}};
    for (size_t i = 0; i < pages.size(); ++i) {
      if (i == 1) continue;
      const Sequence& sequence = batch.sequences[i];
      Batch alone(3);
      alone.add(sequence.slot, sequence.position, sequence.count, sequence.flags, pages[i]);
      const Elements part = apart.run(
          run, alone, qkv.part(size_t(sequence.first) * shape.row(), size_t(sequence.count) * shape.row()),
          slots);
      CHECK(part == y.part(size_t(sequence.first) * shape.width(), part.size()));
    }
    // The cache of the idle row is among what is compared.
    CHECK(apart.cache == together.cache);

    for (const AttentionRun& other : others) {
      AttentionLayer split = start;
      const Elements same = split.run(other, batch, qkv, slots);
      CHECK(split.cache == together.cache);
      const size_t row = shape.width();
      CHECK(same.part(0, row) == y.part(0, row));
      CHECK(same.part(2 * row, y.size() - 2 * row) == y.part(2 * row, y.size() - 2 * row));
    }
  }
}

inline void check_attention_extremes(const AttentionRun& run) {
  const AttentionLayerShape shape = {2, 1, 16, DType::f32, DType::e4m3};
  AttentionLayer layer(shape, 1);
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
  const Elements y = layer.run(run, batch, Elements(DType::f32, values));
  CHECK_EQ(layer.cached(0, 0, 0, 0, 0), 448.0f);
  CHECK_EQ(layer.cached(0, 0, 0, 0, 1), -448.0f);
  CHECK_EQ(layer.cached(0, 0, 0, 0, 2), 0.0f);
  CHECK_EQ(y[0], 224.0f);
  CHECK_EQ(y[1], -224.0f);
  CHECK_EQ(y[2], 0x1p-10f);
  CHECK_EQ(y[size_t(shape.width())], 0.0f);
}

/// A NaN reaches the tokens from its own position on, whatever the cache holds it as.
inline void check_attention_nan(const AttentionRun& run, const std::vector<AttentionLayerShape>& shapes) {
  for (const AttentionLayerShape& shape : shapes) {
    Elements qkv = random_attention_rows(shape, 40, 8);
    std::vector<float> values;
    for (size_t i = 0; i < qkv.size(); ++i) values.push_back(qkv[i]);
    for (int32_t h = 0; h < shape.kv_heads; ++h) {
      const size_t head = size_t(shape.heads + shape.kv_heads + h) * shape.head_dim;
      values[35 * size_t(shape.row()) + head] = std::nanf("");
    }
    AttentionLayer layer(shape, 1);
    Batch batch(1);
    batch.add(0, 0, 40, 0, {0});
    const Elements y = layer.run(run, batch, Elements(shape.type, values));
    for (const int32_t t : {0, 32, 34, 35, 39}) {
      for (int32_t h = 0; h < shape.heads; ++h) {
        CHECK_EQ(std::isnan(y[(size_t(t) * shape.heads + h) * shape.head_dim]), t >= 35);
      }
    }
  }
}

}  // namespace nibblet::test
