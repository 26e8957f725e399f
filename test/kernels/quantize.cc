#include "kernels/quantize/quantize.h"

#include <algorithm>
#include <cmath>

#include "kernels/numerics/bf16.h"
#include "test/kernels/harness.h"
#include "test/kernels/inputs.h"
#include "test/kernels/weights.h"

using namespace nibblet;
using namespace nibblet::test;

namespace {

/// Runs the op on `w` (copied to an odd address) and keeps what it wrote.
struct Quantized {
  GuardedBytes codes;
  GuardedBytes block_scales;
  GuardedBytes global_scale;
  int32_t columns;

  Quantized(const std::vector<float>& w, int32_t rows, int32_t columns, int workers = 2,
            DType type = DType::f32)
      : codes(size_t(rows) * size_t(columns) / 2, 0xee),
        block_scales(size_t(rows) * size_t(columns) / 16, 0xee),
        global_scale(sizeof(float), 0xff),
        columns(columns) {
    std::vector<uint8_t> bytes(w.size() * dtype_bytes(type) + 1);
    for (size_t i = 0; i < w.size(); i++) {
      uint16_t narrow = bf16_from_float(w[i]);
      std::memcpy(&bytes[1 + i * dtype_bytes(type)], type == DType::bf16 ? (const void*)&narrow : &w[i],
                  dtype_bytes(type));
    }
    std::vector<float> partial(size_t(workers), 0.0f);
    QuantizeArgs args = {
        bytes.data() + 1,         type,          rows, columns, codes.data(), block_scales.data(),
        global_scale.as<float>(), partial.data()};
    for (int phase = 0; phase < kQuantizePhases; phase++) {
      for (int worker = 0; worker < workers; worker++) quantize(args, phase, worker, workers);
    }
    CHECK(codes.guards_intact());
    CHECK(block_scales.guards_intact());
    CHECK(global_scale.guards_intact());
  }

  float global() { return *global_scale.as<float>(); }
  int code(size_t index) { return codes.data()[index / 2] >> (index % 2 * 4) & 15; }
};

/// Nearest of the first `codes` values to a magnitude, ties to even; by search in float64.
template <typename Value>
int nearest(double magnitude, int codes, Value value) {
  int best = 0;
  for (int code = 1; code < codes; code++) {
    double old_distance = std::fabs(value(best) - magnitude), distance = std::fabs(value(code) - magnitude);
    if (distance < old_distance || (distance == old_distance && code % 2 == 0)) best = code;
  }
  return best;
}

/// The definition with each operation in float64 rounded to float32, which is what a float32 operation is.
void check_against_definition(const std::vector<float>& w, Quantized& result) {
  auto f32 = [](double value) { return double(float(value)); };
  double amax = 0;
  for (float value : w) amax = std::max(amax, std::fabs(double(value)));
  double global = f32(amax / 2688);
  CHECK_EQ(double(result.global()), global);
  for (size_t block = 0; block < w.size() / 16; block++) {
    double block_amax = 0;
    for (size_t i = 0; i < 16; i++) block_amax = std::max(block_amax, std::fabs(double(w[block * 16 + i])));
    double quotient = block_amax == 0 ? 1 : f32(block_amax / f32(6 * global));
    quotient = std::clamp(quotient, 0x1p-9, 448.0);
    int scale = nearest(quotient, 127, [](int code) { return e4m3_value(uint8_t(code)); });
    CHECK_EQ(int(result.block_scales.data()[block]), scale);
    double step = f32(e4m3_value(uint8_t(scale)) * global);
    for (size_t i = block * 16; i < block * 16 + 16; i++) {
      double scaled = f32(w[i] / step);
      int code = nearest(std::min(std::fabs(scaled), 6.0), 8, e2m1_value);
      CHECK_EQ(result.code(i), scaled < 0 ? code | 8 : code);
    }
  }
}

}  // namespace

TEST(quantize_follows_its_definition) {
  for (DType type : {DType::f32, DType::bf16}) {
    std::vector<float> w = random_floats(64 * 48, 1);
    // Blocks of very different size: some far below the smallest block scale.
    for (size_t i = 0; i < w.size(); i++) w[i] = std::ldexp(w[i], -int(i / 16 % 30));
    std::fill_n(w.begin() + 32, 16, 0.0f);
    w[40] = -0.0f;
    if (type == DType::bf16) {
      for (float& value : w) value = round_to_bf16(value);
    }
    Quantized result(w, 64, 48, 3, type);
    check_against_definition(w, result);
  }
}

TEST(quantize_ties) {
  // amax 2688 makes the global scale 1, and a block maximum of 6 the block scale 1.
  std::vector<float> w(32, 0.0f);
  w[0] = 2688.0f;
  constexpr float kValues[] = {6,      0.25f,  0.75f,  1.25f,  1.75f, 2.5f,  3.5f, 5,
                               -0.25f, -0.75f, -1.25f, -1.75f, -2.5f, -3.5f, -5,   -0.0f};
  constexpr int kCodes[] = {7, 0, 2, 2, 4, 4, 6, 6, 8, 10, 10, 12, 12, 14, 14, 0};
  std::copy(std::begin(kValues), std::end(kValues), w.begin() + 16);
  Quantized result(w, 1, 32);
  CHECK_EQ(result.global(), 1.0f);
  CHECK_EQ(int(result.block_scales.data()[0]), 0x7e);
  CHECK_EQ(int(result.block_scales.data()[1]), 0x38);
  for (size_t i = 0; i < 16; i++) CHECK_EQ(result.code(16 + i), kCodes[i]);
}

TEST(quantize_error_is_within_a_step) {
  std::vector<float> w = random_floats(32 * 64, 2);
  Quantized result(w, 32, 64);
  for (size_t i = 0; i < w.size(); i++) {
    double scale = e4m3_value(result.block_scales.data()[i / 16]) * double(result.global());
    double value = e2m1_value(result.code(i)) * scale;
    // Widest gap between codes is 2, and rounding the block scale moves its maximum by at most 1/16.
    CHECK_NEAR(value, w[i], scale * 1.4);
  }
}

TEST(quantize_zeros) {
  std::vector<float> w(64, 0.0f);
  w[5] = -0.0f;
  Quantized result(w, 2, 32);
  CHECK_EQ(result.global(), 0.0f);
  for (size_t i = 0; i < 64; i++) CHECK_EQ(result.code(i), 0);
  for (size_t i = 0; i < 4; i++) CHECK_EQ(int(result.block_scales.data()[i]), 0x38);
}

TEST(quantize_tiny_values) {
  // Below what float32 holds as a global scale, and just above.
  std::vector<float> w(32, 1e-44f);
  Quantized vanished(w, 1, 32);
  CHECK_EQ(vanished.global(), 0.0f);
  CHECK_EQ(vanished.code(7), 0);
  for (float& value : w) value = 1e-38f;
  w[3] = -2e-38f;
  Quantized result(w, 1, 32);
  check_against_definition(w, result);
}

TEST(quantize_reports_nan_and_infinity) {
  for (size_t position : {size_t(0), size_t(33), size_t(16 * 48 - 1)}) {
    for (int workers : {1, 2, 7}) {
      std::vector<float> w = random_floats(16 * 48, 3);
      w[position] = NAN;
      CHECK(std::isnan(Quantized(w, 16, 48, workers).global()));
      w[position] = -INFINITY;
      CHECK(std::isinf(Quantized(w, 16, 48, workers).global()));
      w[(position + 100) % w.size()] = NAN;
      CHECK(std::isnan(Quantized(w, 16, 48, workers).global()));
    }
  }
}

TEST(quantize_worker_counts) {
  std::vector<float> w = random_floats(37 * 48, 4);
  Quantized one(w, 37, 48, 1);
  for (int workers : {2, 3, 7, 50}) {
    Quantized many(w, 37, 48, workers);
    CHECK_EQ(many.global(), one.global());
    CHECK(std::equal(one.codes.data(), one.codes.data() + one.codes.size(), many.codes.data()));
    CHECK(std::equal(one.block_scales.data(), one.block_scales.data() + one.block_scales.size(),
                     many.block_scales.data()));
  }
}
