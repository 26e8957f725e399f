#include "test/kernels/attention_layer.h"
#include "test/kernels/inputs.h"

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

void check_batch(Op op) {
  check_attention_batch(run_of(op), {run_of(op, 2), run_of(op, 3), run_of(op, 7)}, kShapes);
}

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
TEST(attention_extremes) {
  for_each_cpu_variant([] { check_attention_extremes(run_of(attention)); });
}
TEST(attention_nan) {
  for_each_cpu_variant([] { check_attention_nan(run_of(attention), kShapes); });
}

}  // namespace nibblet::test
