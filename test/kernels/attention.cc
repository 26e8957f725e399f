#include "kernels/attention/split.h"
#include "test/kernels/attention_layer.h"
#include "test/kernels/inputs.h"
#include "test/kernels/weights.h"

namespace nibblet::test {
namespace {

const std::vector<AttentionLayerShape> kShapes = {
    {32, 2, 128, DType::bf16, DType::e4m3},  // Nano
    {8, 2, 64, DType::bf16, DType::e4m3},   {8, 2, 64, DType::bf16, DType::bf16},
    {6, 3, 20, DType::f32, DType::f32},     {5, 5, 7, DType::f32, DType::e4m3},
    {1, 1, 1, DType::bf16, DType::bf16},    {18, 1, 33, DType::bf16, DType::f32},
    {2, 1, 300, DType::f32, DType::bf16},  // wider than the blocks of the kernels
};

using Op = void (*)(const AttentionArgs&, int, int, int);

AttentionRun run_of(Op op, int workers = 1) {
  return [=](const AttentionArgs& args, const AttentionSizes&) {
    run_phases(op, kAttentionPhases, args, workers);
  };
}

/// With scratch for eight tokens of every head.
AttentionRun run_split(int workers, int* steps_split = nullptr) {
  return [=](AttentionArgs args, const AttentionSizes& sizes) {
    args.scratch_floats = 8 * size_t(args.heads) * size_t(sizes.pages) * attention_row_floats(1);
    GuardedBytes scratch(args.scratch_floats * sizeof(float), 0xff);
    args.scratch = scratch.as<float>();
    if (steps_split) *steps_split += attention_is_split(args);
    run_phases(attention, kAttentionPhases, args, workers);
    CHECK(scratch.guards_intact());
  };
}

void check_batch(Op op) {
  check_attention_batch(run_of(op), {run_of(op, 2), run_of(op, 3), run_of(op, 7)}, kShapes);
}

/// Two sequences that decode, one that does not, and one of three tokens, of which the first sees a page less, behind what
/// other steps cached.
struct DecodeStep {
  AttentionLayerShape shape;
  AttentionLayer layer;
  Batch batch{4};
  std::vector<Slot> slots = std::vector<Slot>(5);
  Elements qkv;

  explicit DecodeStep(const AttentionLayerShape& s) : shape(s), layer(s, 8), qkv(s.type, size_t(0)) {
    Batch before(4);
    before.add(0, 0, 150, 0, {0, 3, 6});
    before.add(2, 0, 64, 0, {2});
    before.add(1, 0, 63, 0, {4});
    layer.run(run_of(attention), before, random_attention_rows(shape, 277, 5));
    slots[0].active = slots[2].active = 1;
    batch.add(2, 64, 1, kDecode, {2, 7});
    batch.add(3, 5, 1, kDecode, {5});  // not active
    batch.add(0, 150, 1, kDecode, {0, 3, 6});
    batch.add(1, 63, 3, 0, {4, 1});
    qkv = random_attention_rows(shape, int32_t(batch.ids.size()), 6);
  }
  Elements run(const AttentionRun& run) const {
    AttentionLayer copy = layer;
    return copy.run(run, batch, qkv, slots);
  }
  /// Without the row that is not active.
  bool same(const Elements& a, const Elements& b) const {
    const size_t row = size_t(shape.width());
    return a.part(0, row) == b.part(0, row) &&
           a.part(2 * row, a.size() - 2 * row) == b.part(2 * row, b.size() - 2 * row);
  }
};

const std::vector<AttentionLayerShape> kSplitShapes = {
    {4, 1, 128, DType::bf16, DType::e4m3}, {8, 2, 64, DType::bf16, DType::bf16},
    {6, 3, 20, DType::f32, DType::f32},    {5, 5, 7, DType::f32, DType::e4m3},
    {5, 1, 33, DType::bf16, DType::e4m3},
};

}  // namespace

TEST(attention_reference_oracle) { check_attention_oracle(run_of(attention_reference), kShapes); }
TEST(attention_reference_pieces) { check_attention_pieces(run_of(attention_reference), kShapes); }
TEST(attention_reference_batch) { check_batch(attention_reference); }
TEST(attention_reference_extremes) { check_attention_extremes(run_of(attention_reference)); }
TEST(attention_reference_nan) { check_attention_nan(run_of(attention_reference), kShapes); }
TEST(attention_oracle) {
  for_each_cpu_variant([] { check_attention_oracle(run_of(attention), kShapes); });
}
TEST(attention_pieces) {
  for_each_cpu_variant([] { check_attention_pieces(run_of(attention), kShapes); });
}
TEST(attention_batch) {
  for_each_cpu_variant([] { check_batch(attention); });
}
TEST(attention_split_pieces) {
  int split = 0;
  for_each_cpu_variant([&] {
    for (const AttentionLayerShape& shape : kSplitShapes) {
      const int32_t tokens = 390;
      const Elements qkv = random_attention_rows(shape, tokens, 4);
      AttentionLayer whole(shape, 7);
      Batch all(7);
      all.add(0, 0, tokens, 0, {1, 0, 2, 4, 3, 6, 5});
      const Elements y = whole.run(run_of(attention), all, qkv);
      for (const int32_t size : {1, 3}) {
        AttentionLayer layer(shape, 7);
        for (int32_t position = 0; position < tokens; position += size) {
          Batch batch(7);
          batch.add(0, position, size, 0, {1, 0, 2, 4, 3, 6, 5});
          const Elements part =
              layer.run(run_split(3, &split), batch,
                        qkv.part(size_t(position) * shape.row(), size_t(size) * shape.row()));
          CHECK(part == y.part(size_t(position) * shape.width(), part.size()));
        }
      }
    }
  });
  CHECK(split > 0);
}
TEST(attention_split_gives_the_same_bits) {
  for_each_cpu_variant([] {
    for (const AttentionLayerShape& shape : kSplitShapes) {
      const DecodeStep step(shape);
      const Elements whole = step.run(run_of(attention));
      for (const int workers : {1, 2, 3, 7, 40}) {
        int split = 0;
        CHECK(step.same(step.run(run_split(workers, &split)), whole));
        CHECK_EQ(split, 1);
      }
    }
  });
}
TEST(attention_split_oracle) {
  for_each_cpu_variant([] {
    for (const AttentionLayerShape& shape : kSplitShapes) {
      AttentionLayer layer(shape, 6);
      const Elements qkv = random_attention_rows(shape, 330, 3);
      Batch before(6), batch(6);
      before.add(0, 0, 329, 0, {1, 0, 2, 4, 3, 5});
      layer.run(run_of(attention), before, qkv.part(0, size_t(329) * shape.row()));
      batch.add(0, 329, 1, 0, {1, 0, 2, 4, 3, 5});
      int split = 0;
      const Elements y =
          layer.run(run_split(3, &split), batch, qkv.part(size_t(329) * shape.row(), shape.row()));
      CHECK_EQ(split, 1);
      const std::vector<Bounded> expected = attention_oracle(layer, qkv, 329);
      for (int32_t i = 0; i < shape.width(); ++i)
        CHECK_NEAR(y[size_t(i)], expected[i].value, expected[i].error);
    }
  });
}
TEST(attention_is_split_where_tokens_are_few_and_scores_fit) {
  const AttentionLayerShape shape = {4, 1, 128, DType::bf16, DType::e4m3};
  const auto check = [](bool expected) {
    return [=](const AttentionArgs& args, const AttentionSizes&) {
      AttentionArgs given = args;
      // Three pages of 150 positions, two of 64, two of three tokens.
      given.scratch_floats =
          4 * (attention_row_floats(3) + attention_row_floats(2) + 3 * attention_row_floats(2));
      CHECK_EQ(attention_is_split(given), expected);
      given.scratch_floats--;
      CHECK(!attention_is_split(given));
    };
  };
  DecodeStep(shape).run(check(true));
  DecodeStep prompt(shape);
  prompt.batch.sequences[3].count = 5;
  prompt.run(check(false));
  DecodeStep wide({1, 1, 300, DType::f32, DType::bf16});
  wide.run(check(false));
  // Few pages are sooner done by one phase.
  Batch batch(3);
  batch.add(0, 190, 1, 0, {0, 1, 2});
  int split = 0;
  AttentionLayer(shape, 3).run(run_split(2, &split), batch, random_attention_rows(shape, 1, 1));
  CHECK_EQ(split, 0);
}
TEST(attention_split_nan) {
  for_each_cpu_variant([] {
    // Of one sequence's cached keys or values: it alone has it, and all of its heads of that kv head.
    for (const DType type : {DType::bf16, DType::e4m3}) {
      for (const int32_t part : {0, 1}) {
        DecodeStep step({8, 2, 64, DType::bf16, type});
        const size_t at = ((size_t(3) * 2 + size_t(part)) * 2 + 1) * kPageTokens * 64 + 17 * 64 + 50;
        if (type == DType::bf16) {
          static_cast<uint16_t*>(step.layer.cache.data())[at] = 0x7fc0;
        } else {
          static_cast<uint8_t*>(step.layer.cache.data())[at] = 0xff;
        }
        const Elements whole = step.run(run_of(attention)), y = step.run(run_split(3));
        for (int32_t i = 0; i < 512; ++i) {
          CHECK(!std::isnan(y[size_t(i)]) && !std::isnan(y[size_t(3 * 512 + i)]));
          const bool reached = i >= 256 && (part == 0 || i % 64 == 50);
          CHECK_EQ(std::isnan(y[size_t(2 * 512 + i)]), reached);
          if (!reached) CHECK_EQ(y[size_t(2 * 512 + i)], whole[size_t(2 * 512 + i)]);
        }
      }
    }
    // Of one head's query: the others have the bits of a step without.
    DecodeStep step({8, 2, 64, DType::bf16, DType::e4m3});
    const Elements before = step.run(run_split(3));
    static_cast<uint16_t*>(step.qkv.data())[2 * size_t(step.shape.row())] = 0x7fc0;
    const Elements y = step.run(run_split(3));
    for (int32_t i = 0; i < 512; ++i) {
      CHECK_EQ(std::isnan(y[size_t(2 * 512 + i)]), i < 64);
      if (i >= 64) CHECK_EQ(y[size_t(2 * 512 + i)], before[size_t(2 * 512 + i)]);
    }
  });
}
TEST(attention_extremes) {
  for_each_cpu_variant([] { check_attention_extremes(run_of(attention)); });
}
TEST(attention_nan) {
  for_each_cpu_variant([] { check_attention_nan(run_of(attention), kShapes); });
}

}  // namespace nibblet::test
