#include "kernels/moe/plan.h"
#include "kernels/pack/layout.h"
#include "test/cuda/moe_device.h"

namespace nibblet::test {
namespace {

constexpr Format f32 = Format::f32, bf16 = Format::bf16, e4m3 = Format::e4m3, nvfp4 = Format::nvfp4;

std::vector<MoeShape> small_shapes() {
  return {
      make_shape(nvfp4, 64, 128, 6, 48, 96),             // Nano's routing
      make_shape(nvfp4, 384, 32, 4, 96, 384),            // the bundled model's
      make_shape(nvfp4, 48, 12, 3, 16, 48, 1, 1, true),  // less than a unit, biases
      make_shape(nvfp4, 272, 130, 5, 32, 0),             // no shared expert, rows past a multiple of 128
      make_shape(nvfp4, 144, 3, 1, 160, 16),             // one expert a token
      make_shape(nvfp4, 32, 36, 4, 16, 32, 12, 5, true, false),
      make_shape(bf16, 64, 32, 4, 16, 0, 8, 3),
      make_shape(bf16, 28, 11, 3, 20, 28),  // nothing a multiple of 16
      make_shape(bf16, 30, 12, 3, 13, 7, 6, 2, true),
      make_shape(e4m3, 37, 9, 1, 40, 41, 9, 1),               // groups of one expert
      make_shape(e4m3, 48, 5, 5, 80, 33, 1, 1, true, false),  // all experts
      make_shape(f32, 20, 12, 3, 13, 7, 4, 2, true),
      make_shape(f32, 24, 4, 1, 16, 32),
  };
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

/// Holds every `stride`-th token of `y` against the oracle.
void check_oracle(const MoeLayer& layer, const std::vector<float>& x, const std::vector<float>& y,
                  size_t stride = 1) {
  const size_t hidden = size_t(layer.shape.hidden), tokens = x.size() / hidden;
  size_t held = 0, doubtful = 0;
  for (size_t t = 0; t < tokens; t += stride) {
    double margin = 1;
    const std::vector<Bounded> expected = layer.oracle(x.data() + t * hidden, margin);
    if (margin < 1e-5) {
      ++doubtful;  // rounding may choose another expert
      continue;
    }
    ++held;
    for (size_t i = 0; i < hidden; ++i) CHECK_NEAR(y[t * hidden + i], expected[i].value, expected[i].error);
  }
  CHECK(held > 4 * doubtful);
}

/// Runs twice: the same bits, and the oracle's.
std::vector<float> check_layer(MoeLayer& layer, int32_t tokens, int32_t capacity, size_t stride = 1) {
  DeviceMoe device(layer, capacity);
  const std::vector<float> x = random_rows(layer.shape, tokens, 17);
  const std::vector<float> y = device.run(x);
  CHECK(same_bits(device.run(x), y));
  check_oracle(layer, x, y, stride);
  return y;
}

MoePlan plan_of(const DeviceMoe& device) {
  return moe_plan(device.args, nullptr, nullptr, nullptr, device.target);
}

MoeShape nano() { return make_shape(nvfp4, 2688, 128, 6, 1856, 3712); }

void check_real_shape(int32_t tokens, size_t stride = 1) {
  if (!only_on_gpu()) return;
  MoeLayer layer(nano(), 3);
  check_layer(layer, tokens, tokens, stride);
}

}  // namespace

TEST(cuda_moe_one_token) {
  for (const MoeShape& shape : small_shapes()) {
    MoeLayer layer(shape, 3);
    check_layer(layer, 1, 1);
  }
}

TEST(cuda_moe_one_token_of_older_chips) {
  // An older chip; one with less shared memory (sm_89, sm_120), one with too little of it for `up` of one token; few and
  // many blocks.
  MoeLayer layer(make_shape(nvfp4, 384, 32, 4, 96, 384, 1, 1, true), 3);
  const std::vector<float> x = random_rows(layer.shape, 1, 17);
  CudaTarget old = cuda_target(), modest = old, small = old, narrow = old, wide = old;
  old.capability = 80;
  modest.shared_bytes = 99 << 10;
  small.shared_bytes = 40 << 10;
  narrow.multiprocessors = 2;
  wide.multiprocessors = 400;
  for (const CudaTarget& target : {old, modest, small, narrow, wide}) {
    DeviceMoe device(layer, 1, target);
    CHECK_EQ(plan_of(device).alone, target.shared_bytes != small.shared_bytes);
    check_oracle(layer, x, device.run(x));
  }
}

TEST(cuda_moe_one_token_of_long_parts) {
  // With one multiprocessor nothing is cut: parts have 129 blocks of inputs, one more than are listed at a time.
  MoeLayer layer(make_shape(nvfp4, 48, 3, 2, 2064, 2064, 1, 1, true), 3);
  CudaTarget target = cuda_target();
  target.multiprocessors = 1;
  DeviceMoe device(layer, 1, target);
  const MoePlan plan = plan_of(device);
  CHECK(plan.alone && plan.routed_splits == 1 && plan.shared_splits == 1);
  CHECK(2064 / kBlockInputs > kMoeListBlocks);
  const std::vector<float> x = random_rows(layer.shape, 1, 17);
  check_oracle(layer, x, device.run(x));
}

TEST(cuda_moe_few_tokens) {
  for (const MoeShape& shape : small_shapes()) {
    MoeLayer layer(shape, 3);
    check_layer(layer, 1, 7);
    check_layer(layer, 2, 2);
    check_layer(layer, 7, 9);
  }
}

TEST(cuda_moe_of_long_rows) {
  // Nine chunks of rows, which two blocks of five warps share, and 129 blocks of inputs in two parts, one longer, or four.
  MoeLayer layer(make_shape(nvfp4, 1040, 4, 2, 32, 2064), 3);
  CHECK_EQ(plan_of(DeviceMoe(layer, 9)).shared_splits, 2);
  CHECK_EQ(plan_of(DeviceMoe(layer, 3)).shared_splits, 4);
  check_layer(layer, 3, 3);
  check_layer(layer, 3, 9);
  // For `up` of one token more units a warp than it has under way with little shared memory.
  CudaTarget modest = cuda_target();
  modest.shared_bytes = 99 << 10;
  DeviceMoe device(layer, 1, modest);
  const std::vector<float> x = random_rows(layer.shape, 1, 17);
  check_oracle(layer, x, device.run(x));
}

TEST(cuda_moe_few_tokens_of_long_parts) {
  MoeLayer layer(make_shape(nvfp4, 48, 3, 2, 2064, 2064, 1, 1, true), 3);
  // Added twice they would show.
  std::fill(layer.down_bias.begin(), layer.down_bias.end(), 1e4f);
  std::fill(layer.shared_down_bias.begin(), layer.shared_down_bias.end(), 1e3f);
  CHECK_EQ(plan_of(DeviceMoe(layer, 9)).routed_splits, 2);
  CHECK_EQ(plan_of(DeviceMoe(layer, 3)).routed_splits, 4);
  check_layer(layer, 3, 3);
  check_layer(layer, 3, 9);
}

TEST(cuda_moe_many_tokens) {
  for (const MoeShape& shape : small_shapes()) {
    MoeLayer layer(shape, 5);
    check_layer(layer, 33, 40, 5);
    check_layer(layer, 130, 130, 31);
  }
}

TEST(cuda_moe_many_experts) {
  // More than 48 KiB of shared memory for the choice; for the lists of f32 too.
  for (const MoeShape& shape : {make_shape(nvfp4, 16, 2100, 3, 16, 0), make_shape(f32, 8, 4200, 2, 8, 0)}) {
    MoeLayer layer(shape, 3);
    check_layer(layer, 2, 2);
  }
}

TEST(cuda_moe_mixed_formats) {
  MoeLayer layer(make_shape(nvfp4, 64, 16, 3, 48, 80), 3);
  const MoeShape other = make_shape(e4m3, 64, 16, 3, 48, 80);
  layer.shared_up = ExpertWeights(other, 1, 80, 64, 5);
  for (const int32_t tokens : {1, 9}) check_layer(layer, tokens, tokens);
  layer.shared_down = ExpertWeights(other.for_down(), 1, 64, 80, 6);
  for (const int32_t tokens : {1, 9, 70}) check_layer(layer, tokens, tokens, 7);
}

TEST(cuda_moe_shares_of_zeros) {
  MoeLayer layer(make_shape(nvfp4, 144, 16, 3, 272, 528, 1, 1, true), 3);
  const size_t activations = 3 * 272 + 528;
  std::vector<double> shares;
  for (const float bias : {1e6f, 0.0f, -2.0f, -1e6f}) {
    std::fill(layer.up_bias.begin(), layer.up_bias.end(), bias);
    std::fill(layer.shared_up_bias.begin(), layer.shared_up_bias.end(), bias);
    for (const int32_t tokens : {1, 5, 66}) {
      check_layer(layer, tokens, tokens, 13);
      DeviceMoe device(layer, tokens);
      device.run(random_rows(layer.shape, tokens, 17), true);
      const auto counts = device.statistics.read();
      CHECK_EQ(counts[kMoeActivations], activations * size_t(tokens));
      if (tokens == 1) shares.push_back(double(counts[kMoeZeros]) / double(counts[kMoeActivations]));
    }
  }
  CHECK_EQ(shares[0], 0.0);
  CHECK(shares[1] > 0.4 && shares[1] < 0.6);
  CHECK(shares[2] > 0.8 && shares[2] < 0.99);
  CHECK_EQ(shares[3], 1.0);
}

TEST(cuda_moe_ties) {
  MoeLayer layer(make_shape(nvfp4, 16, 8, 2, 16, 0, 1, 1, true), 9);
  std::fill(layer.router.begin(), layer.router.end(), 0.0f);
  std::fill(layer.bias.begin(), layer.bias.end(), -3.0f);
  const auto check = [&] {
    for (const int32_t capacity : {1, 3}) {
      DeviceMoe device(layer, capacity);
      const std::vector<float> x = random_rows(layer.shape, capacity, 2), y = device.run(x);
      for (size_t t = 0; t < size_t(capacity); ++t) {
        double margin = 1;
        const std::vector<Bounded> expected = layer.oracle(x.data() + t * 16, margin);
        CHECK_EQ(margin, 0.0);
        for (size_t i = 0; i < 16; ++i) CHECK_NEAR(y[t * 16 + i], expected[i].value, expected[i].error);
      }
    }
  };
  check();
  layer.shape.groups = 4;
  layer.shape.topk_groups = 1;
  check();
  layer.bias[6] = layer.bias[5] = -2.0f;  // one in each of two groups
  check();
}

TEST(cuda_moe_nan) {
  // A NaN row stays in its row.
  for (const Format format : {nvfp4, bf16}) {
    MoeLayer layer(make_shape(format, 64, 16, 3, 48, 96), 5);
    const size_t row = 64;
    for (const int32_t tokens : {3, 67}) {
      DeviceMoe device(layer, tokens);
      std::vector<float> x = random_rows(layer.shape, tokens, 29);
      const std::vector<float> clean = device.run(x);
      x[row + 1] = std::nanf("");
      const std::vector<float> y = device.run(x);
      CHECK(std::memcmp(y.data(), clean.data(), row * sizeof(float)) == 0);
      CHECK(std::equal(y.begin() + 2 * row, y.end(), clean.begin() + 2 * row));
      for (size_t i = row; i < 2 * row; ++i) CHECK(std::isnan(y[i]));
    }
    DeviceMoe device(layer, 1);
    for (const float value : device.run(std::vector<float>(row, std::nanf("")))) CHECK(std::isnan(value));
  }
}

TEST(cuda_moe_no_tokens) {
  for (const MoeShape& shape : {make_shape(nvfp4, 64, 16, 3, 48, 96), make_shape(f32, 20, 4, 2, 13, 7)}) {
    MoeLayer layer(shape, 5);
    for (const int32_t capacity : {1, 4, 70}) {
      DeviceMoe device(layer, capacity);
      device.run({}, true);
      for (const uint64_t count : device.statistics.read()) CHECK_EQ(count, 0u);
      const std::vector<float> x = random_rows(shape, 1, 3);
      check_oracle(layer, x, device.run(x));
    }
  }
}

TEST(cuda_moe_rejects_layouts) {
  MoeShape shape = make_shape(nvfp4, 64, 16, 3, 48, 96);
  shape.layout = Layout::panels;
  MoeLayer layer(shape, 3);
  DeviceMoe device(layer, 1);
  const cudaError_t error = moe_cuda(device.args, nullptr, nullptr, device.workspace->data(),
                                     device.counters->data(), cuda_target());
  CHECK_EQ(int(error), int(cudaErrorInvalidValue));
}

TEST(cuda_moe_real_shape_of_1) { check_real_shape(1); }
TEST(cuda_moe_real_shape_of_2) { check_real_shape(2); }
TEST(cuda_moe_real_shape_of_33) { check_real_shape(33, 7); }
TEST(cuda_moe_real_shape_of_130) { check_real_shape(130, 64); }

}  // namespace nibblet::test
