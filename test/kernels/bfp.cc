#include "kernels/linear/bfp.h"

#include "kernels/linear/matmul.h"
#include "kernels/numerics/bf16.h"
#include "kernels/numerics/nvfp4.h"
#include "test/kernels/bfp_bound.h"
#include "test/kernels/harness.h"
#include "test/kernels/inputs.h"
#include "test/kernels/weights.h"

using namespace nibblet;
using namespace nibblet::test;

namespace {

constexpr float kHuge = std::numeric_limits<float>::max();
constexpr float kNormal = std::numeric_limits<float>::min();
constexpr float kSubnormal = std::numeric_limits<float>::denorm_min();

/// The kernels of each variant that has some, for panels of nvfp4.
template <typename Body>
void for_each_bfp(Body body) {
  for_each_cpu_variant([&] {
    WeightView weight = {};
    weight.format = Format::nvfp4;
    weight.layout = Layout::panels;
    if (const BfpKernels* bfp = plan_bfp(weight)) body(*bfp);
  });
}

/// One block, checked against the definition.
void check_block(const BfpKernels& bfp, const std::vector<float>& x) {
  BfpBlock block;
  bfp.from_floats(x.data(), 1, &block);
  double largest = 0;
  int32_t sum = 0;
  for (float value : x) largest = std::max(largest, std::fabs(double(value)));
  const double scale = bfp_scale(largest);
  CHECK_EQ(double(block.scale), scale);
  for (int i = 0; i < kBlockInputs; i++) {
    const int32_t code = 256 * block.high[i] + block.low[i];
    CHECK_EQ(double(code), std::nearbyint(double(x[size_t(kBfpOrder[i])]) / scale));
    CHECK(code >= -(1 << 14) && code <= 1 << 14);
    sum += code;
  }
  CHECK_EQ(block.correction, -kBfpWeightOffset * sum);
}

std::vector<float> random_block(std::mt19937& random, int spread, int binade) {
  std::vector<float> x;
  for (int i = 0; i < kBlockInputs; i++) {
    const float mantissa = 1 + float(random() >> 9) * 0x1p-23f;
    x.push_back(std::ldexp(random() % 2 ? mantissa : -mantissa, binade - int(random() % uint32_t(spread))));
  }
  return x;
}

}  // namespace

TEST(bfp_follows_its_definition) {
  for_each_bfp([](const BfpKernels& bfp) {
    std::mt19937 random(1);
    for (int binade = -149; binade <= 127; binade++) {
      for (int spread : {1, 4, 30}) check_block(bfp, random_block(random, spread, binade));
    }
    for (float value :
         {0.0f, -0.0f, kHuge, -kHuge, kNormal, -kNormal, kSubnormal, 0x1p-113f, 0x1.fffffep-114f}) {
      check_block(bfp, std::vector<float>(kBlockInputs, value));
      std::vector<float> alone(kBlockInputs, 0.0f);
      alone[5] = value;
      check_block(bfp, alone);
    }
    // Ties, which go to the even code: the scale is 2^-13.
    std::vector<float> ties = {1, 0x0.8p-13f, -0x0.8p-13f, 0x1.8p-13f, -0x1.8p-13f, 0x2.8p-13f};
    ties.resize(kBlockInputs);
    check_block(bfp, ties);
  });
}

TEST(bfp_keeps_bf16_of_six_binades_and_w4a4_exactly) {
  for_each_bfp([](const BfpKernels& bfp) {
    std::mt19937 random(2);
    const auto check_exact = [&](const std::vector<float>& x) {
      BfpBlock block;
      bfp.from_floats(x.data(), 1, &block);
      for (int32_t i = 0; i < kBlockInputs; i++) CHECK_EQ(bfp_at(block, i), x[size_t(i)]);
    };
    for (int round = 0; round < 1000; round++) {
      std::vector<float> x = random_block(random, 7, int(random() % 200) - 100);
      // The largest stays in its binade.
      for (float& value : x) value = bf16_to_float(uint16_t(std::bit_cast<uint32_t>(value) >> 16));
      x[0] = std::ldexp(1.0f, std::ilogb(*std::max_element(x.begin(), x.end(), [](float a, float b) {
                          return std::fabs(a) < std::fabs(b);
                        })));
      check_exact(x);
      uint8_t codes[kNvfp4Block];
      const float scale = e4m3_to_float(quantize_nvfp4_block(x.data(), 1.0f, codes));
      for (size_t i = 0; i < size_t(kBlockInputs); i++) x[i] = e2m1_to_float(codes[i]) * scale;
      check_exact(x);
    }
  });
}

TEST(bfp_nan_and_infinity_reach_every_sum) {
  RandomWeight source(Format::nvfp4, 37, 64, 3);
  PackedWeight panels(source, Layout::panels);
  for_each_bfp([&](const BfpKernels& bfp) {
    for (float bad : {NAN, -NAN, INFINITY, -INFINITY}) {
      for (size_t place : {size_t{0}, size_t{15}, size_t{40}}) {
        std::vector<float> x = random_floats(3 * 64, 4);
        x[64 + place] = bad;
        BfpBlock blocks[3 * 4];
        bfp.from_floats(x.data(), 12, blocks);
        const BfpBlock* rows[] = {blocks, blocks + 4, blocks + 8};
        float y[3][48];
        float* const y_rows[] = {y[0], y[1], y[2]};
        bfp.matmul(panels.view, 0, rows, 3, 0, 37, y_rows);
        for (int n = 0; n < 37; n++) {
          CHECK(std::isnan(y[1][n]));
          CHECK(std::isfinite(y[0][n]) && std::isfinite(y[2][n]));
        }
      }
    }
  });
}

TEST(bfp_blocks_at_the_ends_of_the_range) {
  // One block huge, one tiny, one zero: each product is that of its own scale, and nothing overflows before the sum does.
  RandomWeight source(Format::nvfp4, 16, 48, 5);
  std::fill(source.row_scales.begin(), source.row_scales.end(), 1.0f);
  PackedWeight panels(source, Layout::panels);
  for_each_bfp([&](const BfpKernels& bfp) {
    for (float size : {0x1p100f, 0x1p112f, 0x1p-90f, kNormal, kSubnormal}) {
      for (int32_t at = 0; at < 3; at++) {
        std::vector<float> x(48, 0.0f);
        for (int32_t i = 0; i < 16; i++) x[size_t(at * 16 + i)] = size * float(i % 3);
        BfpBlock blocks[3];
        bfp.from_floats(x.data(), 3, blocks);
        const BfpBlock* rows[] = {blocks};
        float y[16];
        float* const y_rows[] = {y};
        bfp.matmul(panels.view, 0, rows, 1, 0, 16, y_rows);
        for (int32_t n = 0; n < 16; n++) {
          double sum = 0, weights = 0;
          for (int32_t k = at * 16; k < at * 16 + 16; k++) {
            sum += double(x[size_t(k)]) * source.value(n, k);
            weights += std::fabs(source.value(n, k));
          }
          CHECK_NEAR(y[n], sum, weights * bfp_error(&x[size_t(at * 16)], 16) + half_ulp(sum));
        }
      }
    }
  });
}
