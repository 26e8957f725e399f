#include "test/cuda/attention_device.h"

namespace nibblet::test {
namespace {

using Shapes = std::vector<AttentionLayerShape>;

/// A part of the shapes.
struct ShapeGroup {
  Shapes shapes;      ///< small enough for the emulator
  Shapes emulated;    ///< what stands for them there in tests of many steps, which it runs slowly
  Shapes large = {};  ///< on a GPU alone
};

// Those of the tensor cores, by the type of the cache, then those of the plain kernel.
const ShapeGroup kE4m3 = {{{4, 1, 128, DType::bf16, DType::e4m3},    // the bundled model
                           {19, 1, 128, DType::bf16, DType::e4m3}},  // two tiles of query rows
                          {{3, 1, 128, DType::bf16, DType::e4m3}}};
const ShapeGroup kBf16 = {{{4, 2, 128, DType::bf16, DType::bf16}, {2, 1, 128, DType::f32, DType::bf16}},
                          {{2, 1, 128, DType::bf16, DType::bf16}}};
const ShapeGroup kReal = {{}, {}, {kNanoAttention, {32, 2, 128, DType::bf16, DType::bf16}}};
const ShapeGroup kF32 = {{{6, 3, 20, DType::f32, DType::f32}, {5, 5, 7, DType::f32, DType::e4m3}},
                         {{4, 2, 9, DType::f32, DType::f32}}};
const ShapeGroup kNarrow = {{{4, 2, 8, DType::bf16, DType::e4m3}, {1, 1, 1, DType::bf16, DType::bf16}}, {}};
const ShapeGroup kWide = {{{9, 1, 33, DType::bf16, DType::f32}}, {}, {{2, 1, 256, DType::bf16, DType::e4m3}}};

Shapes shapes() {
  Shapes all;
  for (const ShapeGroup* group : {&kE4m3, &kBf16, &kReal, &kF32, &kNarrow, &kWide}) {
    all.insert(all.end(), group->shapes.begin(), group->shapes.end());
    if (on_gpu()) all.insert(all.end(), group->large.begin(), group->large.end());
  }
  return all;
}

/// For tests of many steps.
Shapes few_shapes(const ShapeGroup& group) {
  if (!group.emulated.empty() ? !on_gpu() : !only_on_gpu()) return group.emulated;
  Shapes all = group.shapes;
  all.insert(all.end(), group.large.begin(), group.large.end());
  return all;
}
Shapes few_shapes() {
  if (on_gpu()) return shapes();
  Shapes all;
  for (const ShapeGroup* group : {&kE4m3, &kBf16, &kF32}) {
    all.insert(all.end(), group->emulated.begin(), group->emulated.end());
  }
  return all;
}

/// One way to cut contexts, whatever the step: what a token sees decides its bits.
AttentionRun run_uncut(int32_t capacity = 0) { return run_on_gpu({capacity, 1}); }

/// A sequence: the rows of its tokens from position 0 on, and its pages.
struct Context {
  Elements rows;
  std::vector<int32_t> pages;

  Context(const AttentionLayerShape& shape, int32_t tokens, uint64_t seed, std::vector<int32_t> its_pages)
      : rows(random_attention_rows(shape, tokens, seed)), pages(std::move(its_pages)) {}

  Elements rows_of(const AttentionLayerShape& shape, int32_t position, int32_t count) const {
    return rows.part(size_t(position) * size_t(shape.row()), size_t(count) * size_t(shape.row()));
  }
  /// Puts the first `count` positions into the cache.
  void cache(AttentionLayer& layer, int32_t count) const {
    const AttentionLayerShape& s = layer.shape;
    for (int32_t j = 0; j < count; ++j) {
      for (int32_t part = 0; part < 2; ++part) {
        const float scale = s.cache_type != DType::e4m3 ? 1 : part == 0 ? layer.k_scale : layer.v_scale;
        for (int32_t head = 0; head < s.kv_heads; ++head) {
          for (int32_t i = 0; i < s.head_dim; ++i) {
            const size_t from = size_t(j) * size_t(s.row()) +
                                size_t(s.heads + part * s.kv_heads + head) * size_t(s.head_dim) + size_t(i);
            write_element(layer.cache.data(), s.cache_type, place(s, j, part, head, i), rows[from] / scale);
          }
        }
      }
    }
  }
  size_t place(const AttentionLayerShape& s, int32_t position, int32_t part, int32_t head, int32_t i) const {
    const int32_t page = pages[size_t(position / kPageTokens)];
    return (((size_t(page) * 2 + size_t(part)) * size_t(s.kv_heads) + size_t(head)) * kPageTokens +
            size_t(position % kPageTokens)) *
               size_t(s.head_dim) +
           size_t(i);
  }
};

std::vector<int32_t> pages_for(int32_t tokens, int32_t first = 0) {
  std::vector<int32_t> pages;
  for (int32_t page = (tokens - 1) / kPageTokens; page >= 0; --page) pages.push_back(first + page);
  return pages;
}

void check_row(const AttentionLayer& layer, const Context& context, int32_t position, const Elements& y,
               int32_t row) {
  const std::vector<Bounded> expected = attention_oracle(layer, context.rows, position);
  for (int32_t i = 0; i < layer.shape.width(); ++i) {
    CHECK_NEAR(y[size_t(row) * size_t(layer.shape.width()) + size_t(i)], expected[size_t(i)].value,
               expected[size_t(i)].error);
  }
}

/// Whether exactly position `position` was written, and with what the oracle says.
void check_appended(const AttentionLayer& before, const AttentionLayer& after, const Context& context,
                    int32_t position) {
  AttentionLayer expected = before;
  context.cache(expected, position + 1);
  CHECK(after.cache == expected.cache);
}

}  // namespace

TEST(cuda_attention_oracle) { check_attention_oracle(run_on_gpu(), shapes()); }
TEST(cuda_attention_pieces_e4m3) { check_attention_pieces(run_uncut(), few_shapes(kE4m3)); }
TEST(cuda_attention_pieces_bf16) { check_attention_pieces(run_uncut(), few_shapes(kBf16)); }
TEST(cuda_attention_pieces_real) { check_attention_pieces(run_uncut(), few_shapes(kReal)); }
TEST(cuda_attention_pieces_f32) { check_attention_pieces(run_uncut(), few_shapes(kF32)); }
TEST(cuda_attention_pieces_narrow) { check_attention_pieces(run_uncut(), few_shapes(kNarrow)); }
TEST(cuda_attention_pieces_wide) { check_attention_pieces(run_uncut(), few_shapes(kWide)); }
TEST(cuda_attention_batch) {
  check_attention_batch(run_uncut(80), {run_uncut(100), run_on_gpu({80, 2})}, few_shapes());
}
TEST(cuda_attention_extremes) { check_attention_extremes(run_on_gpu()); }
TEST(cuda_attention_nan) {
  check_attention_nan(run_on_gpu(), shapes());
  check_attention_nan(run_on_gpu({100, 0}), shapes());
}

/// One token behind contexts around the ends of pages, of the parts they are cut into and of groups of parts.
TEST(cuda_attention_decode) {
  for (const AttentionLayerShape& shape : {AttentionLayerShape{4, 1, 128, DType::bf16, DType::e4m3},
                                           {4, 2, 128, DType::bf16, DType::bf16},
                                           {18, 1, 128, DType::bf16, DType::e4m3}}) {
    const int32_t tokens = shape.heads == 4 ? 1700 : 400;
    const Context context(shape, tokens, 3, pages_for(tokens));
    for (const int32_t position : {0, 1, 62, 63, 64, 65, 127, 128, 129, 256, 383, 399, 900, 1665, 1699}) {
      if (position >= tokens) continue;
      AttentionLayer layer(shape, int32_t(context.pages.size()));
      context.cache(layer, position);
      const AttentionLayer before = layer;
      Batch batch(30);
      batch.add(0, position, 1, 0, context.pages);
      const Elements query = context.rows_of(shape, position, 1);
      const Elements y = layer.run(run_on_gpu({1, 132}), batch, query);
      check_row(layer, context, position, y, 0);
      check_appended(before, layer, context, position);
      for (const int32_t multiprocessors : {1, 9, 132}) {
        AttentionLayer again = before;
        const Elements other = again.run(run_on_gpu({1, multiprocessors}), batch, query);
        CHECK(multiprocessors != 132 || other == y);
        check_row(layer, context, position, other, 0);
        CHECK(again.cache == layer.cache);
      }
    }
  }
}

/// Contexts with more parts than one block merges: they are merged in groups first.
TEST(cuda_attention_decode_long) {
  for (const DType type : {DType::e4m3, DType::bf16}) {
    const AttentionLayerShape shape = {2, 1, 128, DType::bf16, type};
    const int32_t position = 8450;
    const Context context(shape, position + 1, 3, pages_for(position + 1));
    AttentionLayer layer(shape, int32_t(context.pages.size()));
    context.cache(layer, position);
    const AttentionLayer before = layer;
    Batch batch(int32_t(context.pages.size()));
    batch.add(0, position, 1, 0, context.pages);
    const Elements query = context.rows_of(shape, position, 1);
    for (const int32_t multiprocessors : {20, 132}) {
      layer = before;
      const Elements y = layer.run(run_on_gpu({1, multiprocessors}), batch, query);
      check_row(layer, context, position, y, 0);
      check_appended(before, layer, context, position);
    }
  }
}

/// Decode rows and chunks of several sequences in one launch.
TEST(cuda_attention_ragged) {
  for (const AttentionLayerShape& shape : {AttentionLayerShape{4, 1, 128, DType::bf16, DType::e4m3},
                                           {6, 3, 128, DType::bf16, DType::bf16},
                                           {6, 3, 16, DType::bf16, DType::e4m3}}) {
    struct Row {
      int32_t slot, position, count;
      uint32_t flags;
    };
    const std::vector<Row> rows = {{3, 200, 1, kDecode}, {5, 64, 1, kDecode}, {0, 63, 1, kDecode},
                                   {1, 130, 1, kDecode}, {2, 0, 9, 0},        {4, 60, 8, 0}};
    std::vector<Slot> slots(6);
    for (const int32_t slot : {0, 1, 3}) slots[size_t(slot)].active = 1;  // 5 is not
    AttentionLayer layer(shape, 40);
    AttentionLayer expected = layer;
    std::vector<Context> contexts;
    Batch batch(5);
    std::vector<float> values;
    for (const Row& row : rows) {
      const int32_t length = row.position + row.count;
      contexts.emplace_back(shape, length, 100 + row.slot, pages_for(length, 5 * row.slot));
      const Context& context = contexts.back();
      context.cache(layer, row.position);
      context.cache(expected, row.slot == 5 ? row.position : length);
      batch.add(row.slot, row.position, row.count, row.flags, context.pages);
      const Elements part = context.rows_of(shape, row.position, row.count);
      for (size_t i = 0; i < part.size(); ++i) values.push_back(part[i]);
    }
    const Elements qkv(shape.type, values);
    const AttentionLayer before = layer;
    for (const Machine& machine : {Machine{0, 132}, {64, 0}, {65, 0}}) {
      layer = before;
      const Elements y = layer.run(run_on_gpu(machine), batch, qkv, slots);
      CHECK(layer.cache == expected.cache);
      for (size_t r = 0; r < rows.size(); ++r) {
        if (rows[r].slot == 5) continue;
        for (int32_t t = 0; t < rows[r].count; ++t) {
          check_row(layer, contexts[r], rows[r].position + t, y, batch.sequences[r].first + t);
        }
      }
    }
  }
}

/// What the cache holds as NaN reaches what sees it: all of it from a key, its own element from a value.
TEST(cuda_attention_cached_nan) {
  const AttentionLayerShape shape = {4, 1, 128, DType::bf16, DType::e4m3};
  const int32_t position = 90;
  const Context context(shape, position + 1, 3, pages_for(position + 1));
  for (const int32_t part : {0, 1}) {
    for (const int32_t element : {0, 1, 2, 3, 77, 127}) {
      AttentionLayer layer(shape, 2);
      context.cache(layer, position);
      const size_t at = size_t(context.place(shape, 33 + element % 50, part, 0, element));
      static_cast<uint8_t*>(layer.cache.data())[at] = 0xff;
      Batch batch(2);
      batch.add(0, position, 1, 0, context.pages);
      const Elements y = layer.run(run_on_gpu(), batch, context.rows_of(shape, position, 1));
      for (int32_t i = 0; i < shape.width(); ++i) {
        CHECK_EQ(std::isnan(y[size_t(i)]), part == 0 || i % shape.head_dim == element);
      }
    }
  }
}

TEST(cuda_attention_empty) {
  for (const AttentionLayerShape& shape : {kNanoAttention, {6, 3, 20, DType::f32, DType::f32}}) {
    for (const int32_t capacity : {1, 8, 100}) {
      AttentionLayer layer(shape, 1);
      const AttentionLayer before = layer;
      layer.run(run_on_gpu({capacity, 0}), Batch(1), Elements(shape.type, 0));
      CHECK(layer.cache == before.cache);
    }
  }
}

TEST(cuda_attention_refuses) {
  AttentionArgs args = {};
  args.head_dim = 257;
  CHECK(attention_cuda(args, 1, nullptr, nullptr, cuda_target()) == cudaErrorInvalidValue);
}

}  // namespace nibblet::test
