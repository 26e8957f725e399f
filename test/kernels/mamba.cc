#include "test/kernels/inputs.h"
#include "test/kernels/mamba_layer.h"

namespace nibblet::test {
namespace {

const MambaLayerShape kNano = {64, 64, 8, 128, 4, DType::bf16, true};
const std::vector<MambaLayerShape> kShapes = {
    kNano,
    {16, 64, 2, 128, 4, DType::bf16, true},  // the bundled model
    {6, 20, 3, 24, 3, DType::f32, true},     // nothing a multiple of 16
    {4, 5, 1, 1, 2, DType::f32, false},
    {3, 17, 3, 33, 8, DType::bf16, true},
    {2, 16, 2, 16, 1, DType::f32, true},   // no convolution history
    {2, 32, 1, 16, 19, DType::f32, true},  // an unusually long kernel
};

using Op = void (*)(const MambaArgs&, int, int, int);

MambaRun run_of(Op op, int workers = 1) {
  return [=](const MambaArgs& args, int32_t) { run_phases(op, kMambaPhases, args, workers); };
}

/// In one phase, where a shape allows that.
MambaRun by_groups(int workers = 1) {
  return [=](const MambaArgs& args, int32_t) {
    if (!mamba_groups_stand_alone(args)) return run_phases(mamba, kMambaPhases, args, workers);
    run_phases(mamba_by_groups, 1, args, workers);
  };
}

void check_batch(Op op) {
  check_mamba_batch(run_of(op), {run_of(op, 2), run_of(op, 3), run_of(op, 7)}, kShapes);
}

/// mixer.inc has one order of additions and its own exponential: what machine it was compiled for shows only in whether
/// multiplications are fused with them.
void check_variants_agree() {
  for (const MambaLayerShape& shape : kShapes) {
    const Elements projected = random_mamba_rows(shape, 5, 31);
    Batch batch;
    batch.add(0, 0, 5);
    std::vector<MambaLayer> layers;
    std::vector<Elements> outputs;
    for_each_cpu_variant([&] {
      layers.emplace_back(shape, 1, 5);
      outputs.push_back(layers.back().run(run_of(mamba), batch, projected));
      layers.emplace_back(shape, 1, 5);
      outputs.push_back(layers.back().run(by_groups(), batch, projected));
    });
    CHECK(outputs[1] == outputs[0]);
    CHECK(layers[1].same_states(layers[0]));
    const size_t fused = 2;  // the portable variant comes first, twice
    for (size_t i = fused + 1; i < layers.size(); ++i) {
      CHECK(outputs[i] == outputs[fused]);
      CHECK(layers[i].same_states(layers[fused]));
    }
  }
}

}  // namespace

TEST(mamba_reference_oracle) { check_mamba_oracle(run_of(mamba_reference), kShapes); }
TEST(mamba_reference_pieces) { check_mamba_pieces(run_of(mamba_reference), kShapes); }
TEST(mamba_reference_batch) { check_batch(mamba_reference); }
TEST(mamba_oracle) {
  for_each_cpu_variant([] { check_mamba_oracle(run_of(mamba), kShapes); });
}
TEST(mamba_pieces) {
  for_each_cpu_variant([] { check_mamba_pieces(run_of(mamba), kShapes); });
}
TEST(mamba_batch) {
  for_each_cpu_variant([] { check_batch(mamba); });
}
TEST(mamba_by_groups) {
  for_each_cpu_variant([] {
    check_mamba_pieces(by_groups(), kShapes);
    check_mamba_batch(by_groups(), {by_groups(2), by_groups(3), run_of(mamba)}, kShapes);
  });
}
TEST(mamba_variants_agree) { check_variants_agree(); }

}  // namespace nibblet::test
