#include "kernels/linear/linear.h"

#include <algorithm>

#include "kernels/numerics/bf16.h"
#include "kernels/numerics/e2m1.h"
#include "kernels/numerics/e4m3.h"
#include "kernels/numerics/nvfp4.h"
#include "test/kernels/linear_call.h"

using namespace nibblet;
using namespace nibblet::test;

namespace {

constexpr Layout kLayouts[] = {Layout::rows, Layout::panels};

std::vector<uint8_t> bytes_of(GuardedBytes& bytes) { return {bytes.data(), bytes.data() + bytes.size()}; }

}  // namespace

TEST(linear_product_and_bf16_rounding) {
  for_each_cpu_variant([] {
    for (Format format : kFormats) {
      for (Layout layout : kLayouts) {
        LinearCall call(format, layout, 37, 48, 5);
        call.run();
        for (int32_t m = 0; m < 5; m++) {
          for (int32_t k = 0; k < 48; k++) {
            const float rounded = round_to_bf16(call.x[size_t(m * 48 + k)]);
            float block[kBlockInputs];
            for (int i = 0; i < kBlockInputs; i++) {
              block[i] = round_to_bf16(call.x[size_t(m * 48 + k / kBlockInputs * kBlockInputs + i)]);
            }
            const double bound = call.block_floating_point() ? bfp_error(block, kBlockInputs) : 0;
            CHECK_NEAR(call.prepared_at(m, k), rounded, bound);
          }
          for (int32_t n = 0; n < 37; n++) {
            auto [exact, bound] = call.product(m, n);
            CHECK_NEAR(call.y_at(m, n), exact, bound);
          }
        }
      }
    }
  });
}

TEST(linear_exact_keeps_float32) {
  LinearCall call(Format::nvfp4, Layout::rows, 17, 64, 3);
  call.args.exact = true;
  call.run();
  for (int32_t m = 0; m < 3; m++) {
    for (int32_t k = 0; k < 64; k++) CHECK_EQ(call.prepared_at(m, k), call.x[size_t(m * 64 + k)]);
    for (int32_t n = 0; n < 17; n++) {
      auto [exact, bound] = call.product(m, n);
      CHECK_NEAR(call.y_at(m, n), exact, bound);
    }
  }
}

TEST(linear_bf16_input_and_stride) {
  // Rows of x are views into wider ones; inputs that are no multiple of 16 are padded with zeros.
  LinearCall call(Format::bf16, Layout::panels, 20, 24, 4);
  call.args.x = call.x_bf16.data();
  call.args.x_type = DType::bf16;
  call.args.x_stride = 20;
  call.run();
  for (int32_t m = 0; m < 4; m++) {
    for (int32_t k = 0; k < 32; k++) {
      CHECK_EQ(call.prepared_at(m, k), k < 24 ? bf16_to_float(call.x_bf16[size_t(m * 20 + k)]) : 0.0f);
    }
    for (int32_t n = 0; n < 20; n++) {
      auto [exact, bound] = call.product(m, n);
      CHECK_NEAR(call.y_at(m, n), exact, bound);
    }
  }
}

TEST(linear_norm) {
  for (bool exact : {true, false}) {
    for (int32_t in : {16, 2688}) {
      LinearCall call(Format::bf16, Layout::panels, 16, in, 3);
      call.args.norm = call.norm.data();
      call.args.exact = exact;
      call.run();
      for (int32_t m = 0; m < 3; m++) {
        const float* x = &call.x[size_t(m) * size_t(in)];
        double squares = 0;
        for (int32_t k = 0; k < in; k++) squares += double(x[k]) * x[k];
        double scale = 1 / std::sqrt(squares / in + double(1e-5f));
        for (int32_t k = 0; k < in; k++) {
          double expected = x[k] * scale * call.norm[size_t(k)];
          double bound = (exact ? 0 : std::fabs(expected) * 0x1p-8) + std::fabs(expected) * 8 * 0x1p-24;
          CHECK_NEAR(call.prepared_at(m, k), expected, bound);
          if (!exact) CHECK_EQ(round_to_bf16(call.prepared_at(m, k)), call.prepared_at(m, k));
        }
      }
    }
  }
}

TEST(linear_epilogue) {
  for (DType y_type : {DType::f32, DType::bf16}) {
    for (Activation activation : {Activation::none, Activation::relu2}) {
      for (bool bias : {false, true}) {
        LinearCall call(Format::e4m3, Layout::panels, 33, 32, 3, y_type);
        call.args.activation = activation;
        if (bias) call.args.bias = call.bias.data();
        call.run();
        bool positive = false, negative = false;
        for (int32_t m = 0; m < 3; m++) {
          for (int32_t n = 0; n < 33; n++) {
            auto [value, bound] = call.product(m, n);
            if (bias) value += call.bias[size_t(n)];
            bound += half_ulp(value);
            (value > 0 ? positive : negative) = true;
            if (activation == Activation::relu2) {
              bound = 2 * std::fabs(value) * bound + bound * bound + half_ulp(value * value);
              value = value > 0 ? value * value : 0;
            }
            if (y_type == DType::bf16) bound += std::fabs(value) * 0x1p-8;
            CHECK_NEAR(call.y_at(m, n), value, bound);
          }
        }
        CHECK(positive && negative);
      }
    }
  }
}

TEST(linear_adds_to_y) {
  LinearCall call(Format::nvfp4, Layout::panels, 33, 32, 3);
  call.args.add = true;
  std::vector<float> before = random_floats(99, 30);
  std::copy(before.begin(), before.end(), call.y.as<float>());
  call.run();
  for (int32_t m = 0; m < 3; m++) {
    for (int32_t n = 0; n < 33; n++) {
      auto [value, bound] = call.product(m, n);
      double expected = value + before[size_t(m * 33 + n)];
      CHECK_NEAR(call.y_at(m, n), expected, bound + half_ulp(expected));
    }
  }
}

TEST(linear_relu2_keeps_nan) {
  for_each_cpu_variant([] {
    for (Format format : kFormats) {
      LinearCall call(format, Layout::panels, 16, 16, 2);
      call.args.activation = Activation::relu2;
      call.x[3] = NAN;
      call.run();
      for (int32_t n = 0; n < 16; n++) {
        CHECK(std::isnan(call.y_at(0, n)));
        CHECK(!std::isnan(call.y_at(1, n)));
      }
    }
  });
}

TEST(linear_infinity_does_not_become_finite) {
  for_each_cpu_variant([] {
    for (float infinity : {INFINITY, -INFINITY}) {
      LinearCall call(Format::nvfp4, Layout::panels, 33, 48, 3);
      call.x[48 + 20] = infinity;
      call.run();
      for (int32_t n = 0; n < 33; n++) {
        CHECK(!std::isfinite(call.y_at(1, n)));
        CHECK(std::isfinite(call.y_at(0, n)) && std::isfinite(call.y_at(2, n)));
      }
    }
  });
}

TEST(linear_selected_rows) {
  LinearCall all(Format::nvfp4, Layout::panels, 31, 48, 9);
  all.run();
  LinearCall some(Format::nvfp4, Layout::panels, 31, 48, 9);
  constexpr LogitsRow kRows[] = {{8, 0}, {0, 1}, {5, 2}, {5, 3}};
  some.args.rows = kRows;
  some.args.count = 4;
  some.run();
  for (int32_t i = 0; i < 4; i++) {
    for (int32_t n = 0; n < 31; n++) CHECK_EQ(some.y_at(i, n), all.y_at(kRows[i].token, n));
  }
  // Rows of y beyond the selected ones are not written.
  CHECK(std::isnan(some.y_at(4, 0)));
}

TEST(linear_y_stride) {
  LinearCall call(Format::nvfp4, Layout::panels, 17, 16, 2);
  GuardedBytes wide(2 * 20 * 4, 0xff);
  call.args.y = wide.data();
  call.args.y_stride = 20;
  call.run();
  for (int32_t m = 0; m < 2; m++) {
    for (int32_t n = 0; n < 20; n++) {
      float value = wide.as<float>()[m * 20 + n];
      CHECK_EQ(std::isnan(value), n >= 17);
    }
  }
  CHECK(wide.guards_intact());
}

TEST(linear_quantized_input) {
  for_each_cpu_variant([] {
    for (Layout layout : kLayouts) {
      LinearCall call(Format::nvfp4, layout, 19, 48, 3);
      float input_scale = 1.0f / 2688 / 2;  // half the range, so that some blocks saturate
      call.args.weight.input_scale = input_scale;
      call.args.quantize_input = true;
      call.run();
      for (int32_t m = 0; m < 3; m++) {
        for (int32_t block = 0; block < 48; block += 16) {
          uint8_t codes[16];
          uint8_t scale = quantize_nvfp4_block(&call.x[size_t(m * 48 + block)], input_scale, codes);
          for (int32_t k = 0; k < 16; k++) {
            CHECK_EQ(double(call.prepared_at(m, block + k)), e2m1_value(codes[k]) * e4m3_value(scale));
          }
        }
        for (int32_t n = 0; n < 19; n++) {
          auto [value, bound] = call.product(m, n);
          CHECK_NEAR(call.y_at(m, n), value * input_scale,
                     bound * input_scale + half_ulp(value * input_scale));
        }
      }
    }
  });
}

TEST(linear_workers_give_the_same_bits) {
  for_each_cpu_variant([] {
    for (Format format : kFormats) {
      for (Layout layout : kLayouts) {
        for (int32_t count : {1, 70}) {
          std::vector<uint8_t> expected;
          for (int workers : {1, 2, 3, 7}) {
            LinearCall call(format, layout, 150, 48, count);
            call.args.norm = call.norm.data();
            call.run(workers);
            if (workers == 1) expected = bytes_of(call.y);
            CHECK(bytes_of(call.y) == expected);
          }
          for (size_t i = 0; i < expected.size(); i += 4) {
            float value;
            std::memcpy(&value, &expected[i], 4);
            CHECK(!std::isnan(value));
          }
        }
      }
    }
  });
}

TEST(linear_token_alone_or_in_a_batch) {
  for_each_cpu_variant([] {
    for (Format format : kFormats) {
      for (Layout layout : kLayouts) {
        LinearCall batch(format, layout, 31, 64, 33);
        batch.args.norm = batch.norm.data();
        batch.run();
        for (int32_t m : {0, 7, 31, 32}) {
          LinearCall alone(format, layout, 31, 64, 1);
          alone.args.norm = alone.norm.data();
          alone.args.x = &batch.x[size_t(m) * 64];
          alone.run();
          for (int32_t n = 0; n < 31; n++) CHECK_EQ(alone.y_at(0, n), batch.y_at(m, n));
        }
      }
    }
  });
}
