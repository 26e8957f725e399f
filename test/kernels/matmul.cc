#include "kernels/linear/matmul.h"

#include <algorithm>
#include <cstring>

#include "test/kernels/bfp_bound.h"
#include "test/kernels/harness.h"
#include "test/kernels/inputs.h"
#include "test/kernels/weights.h"

using namespace nibblet;
using namespace nibblet::test;

namespace {

/// Rows of x and y for a call of an inner product, y poisoned with NaN between guards.
struct Product {
  int32_t count;
  int32_t stride;
  std::vector<float> x;
  std::vector<const float*> x_rows;
  std::vector<GuardedBytes> y;
  std::vector<float*> y_rows;

  Product(int32_t count, int32_t in, int32_t outputs, uint32_t seed)
      : count(count), stride(round_up(in, 16)) {
    x = random_floats(size_t(count) * size_t(stride), seed);
    for (int32_t m = 0; m < count; m++) {
      for (int32_t k = in; k < stride; k++) x[size_t(m * stride + k)] = 0.0f;
      x_rows.push_back(&x[size_t(m * stride)]);
      y.emplace_back(size_t(round_up(outputs, 16)) * sizeof(float), 0xff);
    }
    for (GuardedBytes& row : y) y_rows.push_back(row.as<float>());
  }

  void run(Matmul matmul, const WeightView& weight, int32_t matrix, int32_t first, int32_t last) {
    matmul(weight, matrix, x_rows.data(), count, first, last, y_rows.data());
    check_guards();
  }

  /// By what linear and moe take for such a weight.
  void run_planned(const WeightView& weight, int32_t matrix, int32_t first, int32_t last) {
    const BfpKernels* bfp = plan_bfp(weight);
    if (bfp == nullptr) return run(plan_matmul(weight), weight, matrix, first, last);
    const int32_t blocks = stride / kBlockInputs;
    std::vector<BfpBlock> converted(x.size() / kBlockInputs);
    std::vector<const BfpBlock*> rows;
    for (int32_t m = 0; m < count; m++) {
      BfpBlock* to = &converted[size_t(m * blocks)];
      bfp->from_floats(x_rows[size_t(m)], blocks, to);
      rows.push_back(to);
    }
    bfp->matmul(weight, matrix, rows.data(), count, first, last, y_rows.data());
    check_guards();
  }

  void check_guards() const {
    for (const GuardedBytes& row : y) CHECK(row.guards_intact());
  }
};

struct Shape {
  int32_t out;
  int32_t in;
};

/// The sum in float64 times the row scale, the error bound, and the bound with inputs in block floating point.
struct Exact {
  double value;
  double bound;
  double bfp_bound;
  double bound_of(const WeightView& weight) const { return plan_bfp(weight) ? bfp_bound : bound; }
};

std::vector<double> row_values(const RandomWeight& source, int32_t n) {
  std::vector<double> row;
  for (int32_t k = 0; k < source.in; k++) row.push_back(source.value(n, k));
  return row;
}

Exact exact(const std::vector<double>& row, double scale, const float* x) {
  double sum = 0, magnitudes = 0, converted = 0;
  for (size_t k = 0; k < row.size(); k++) {
    double term = x[k] * row[k];
    sum += term;
    magnitudes += std::fabs(term);
    converted += bfp_error(x + k / 16 * 16, int32_t(row.size() - k / 16 * 16)) * std::fabs(row[k]);
  }
  const double bound = dot_bound(sum * scale, magnitudes * scale, int32_t(row.size()));
  return {sum * scale, bound, bound + converted * scale};
}

/// Reference against float64, and every variant against the reference, on outputs [first, last).
void check_range(const RandomWeight& source, const PackedWeight& rows, const PackedWeight& packed,
                 int32_t count, int32_t first, int32_t last) {
  Product reference(count, source.in, last - first, 11);
  reference.run(matmul_reference, rows.view, 0, first, last);
  std::vector<Exact> expected;
  for (int32_t n = first; n < last; n++) {
    std::vector<double> row = row_values(source, n);
    for (int32_t m = 0; m < count; m++) {
      expected.push_back(exact(row, source.row_scales[size_t(n)], reference.x_rows[size_t(m)]));
      CHECK_NEAR(reference.y_rows[size_t(m)][n - first], expected.back().value, expected.back().bound);
    }
  }
  for_each_cpu_variant([&] {
    Product variant(count, source.in, last - first, 11);
    variant.run_planned(packed.view, 0, first, last);
    for (int32_t m = 0; m < count; m++) {
      for (int32_t n = first; n < last; n++) {
        double bound = expected[size_t((n - first) * count + m)].bound_of(packed.view);
        CHECK_NEAR(variant.y_rows[size_t(m)][n - first], reference.y_rows[size_t(m)][n - first], bound);
      }
    }
  });
}

void check_shape(Format format, Shape shape, std::initializer_list<int32_t> counts) {
  int before = failures();
  RandomWeight source(format, shape.out, shape.in, uint32_t(shape.out * 31 + shape.in));
  PackedWeight rows(source, Layout::rows);
  for (Layout layout : layouts(format)) {
    if (layout == Layout::rows) continue;
    PackedWeight packed(source, layout);
    for (int32_t count : counts) {
      if (shape.out <= 64) {
        check_range(source, rows, packed, count, 0, shape.out);
      } else {
        // Of large matrices: the first panels, some in the middle, the last.
        check_range(source, rows, packed, count, 0, 17);
        check_range(source, rows, packed, count, shape.out / 32 * 16, shape.out / 32 * 16 + 16);
        check_range(source, rows, packed, count, (shape.out - 1) / 16 * 16, shape.out);
      }
    }
  }
  if (failures() > before) std::printf("    (%s, out %d, in %d)\n", name_of(format), shape.out, shape.in);
}

bool same_bits(const float* a, const float* b, int32_t count) {
  return std::memcmp(a, b, size_t(count) * sizeof(float)) == 0;
}

}  // namespace

TEST(matmul_awkward_shapes) {
  for (Format format : kFormats) {
    for (int32_t out : {1, 15, 16, 17, 47}) {
      for (int32_t in : {16, 48, 64}) check_shape(format, {out, in}, {1, 2, 7, 33});
      if (format == Format::nvfp4) continue;
      for (int32_t in : {1, 24, 31}) check_shape(format, {out, in}, {1, 7});
    }
  }
}

TEST(matmul_model_shapes) {
  for (Format format : kFormats) {
    for (Shape shape : {Shape{1856, 2688}, Shape{2688, 1856}, Shape{3712, 2688}, Shape{2688, 3712},
                        Shape{2688, 4096}, Shape{10304, 2688}}) {
      // The checkpoint has these shapes in nvfp4; of the other formats two are enough.
      if (format != Format::nvfp4 && shape.out != 1856 && shape.in != 4096) continue;
      check_shape(format, shape, {1, 7, 33});
    }
  }
}

TEST(matmul_batch_and_range_do_not_change_bits) {
  for_each_cpu_variant([] {
    for (Format format : kFormats) {
      RandomWeight source(format, 70, 208, 12);
      for (Layout layout : layouts(format)) {
        PackedWeight packed(source, layout);
        Product batch(33, source.in, source.out, 13);
        batch.run_planned(packed.view, 0, 0, source.out);
        for (int32_t count = 1; count <= 17; count++) {
          Product part(count, source.in, source.out, 13);
          part.run_planned(packed.view, 0, 0, source.out);
          for (int32_t m = 0; m < count; m++) {
            CHECK(same_bits(part.y_rows[size_t(m)], batch.y_rows[size_t(m)], source.out));
          }
        }
        for (int32_t first : {0, 16, 64}) {
          for (int32_t last : {first + 1, first + 5, source.out}) {
            Product range(5, source.in, last - first, 13);
            range.run_planned(packed.view, 0, first, last);
            for (size_t m = 0; m < 5; m++) {
              CHECK(same_bits(range.y_rows[m], batch.y_rows[m] + first, last - first));
            }
          }
        }
      }
    }
  });
}

TEST(matmul_chooses_the_matrix) {
  // Experts of a layer: three matrices one behind another, each with its own row scales.
  for (Format format : kFormats) {
    for (Layout layout : layouts(format)) {
      size_t bytes = packed_matrix_bytes(format, layout, 20, 32);
      GuardedBytes all(3 * bytes);
      std::vector<RandomWeight> sources;
      std::vector<float> row_scales;
      for (uint32_t matrix = 0; matrix < 3; matrix++) {
        sources.emplace_back(format, 20, 32, 100 + matrix);
        PackedWeight packed(sources.back(), layout);
        std::copy_n(packed.bytes.data(), bytes, all.data() + matrix * bytes);
        row_scales.insert(row_scales.end(), sources.back().row_scales.begin(),
                          sources.back().row_scales.end());
      }
      WeightView view = {format, layout, 3, 20, 32, all.data(), bytes, row_scales.data(), 0};
      for_each_cpu_variant([&] {
        for (int32_t matrix = 0; matrix < 3; matrix++) {
          Product product(2, 32, 20, 14);
          product.run_planned(view, matrix, 0, 20);
          const RandomWeight& source = sources[size_t(matrix)];
          for (int32_t m = 0; m < 2; m++) {
            for (int32_t n = 0; n < 20; n++) {
              Exact expected =
                  exact(row_values(source, n), source.row_scales[size_t(n)], product.x_rows[size_t(m)]);
              CHECK_NEAR(product.y_rows[size_t(m)][n], expected.value, expected.bound_of(view));
            }
          }
        }
      });
    }
  }
}

TEST(matmul_columns_give_the_bits_of_panels) {
  // Dense, as sparse as the real model, with empty blocks, all zero; NaN and infinite inputs; awkward sizes.
  for (Shape shape : {Shape{20, 96}, Shape{1, 16}, Shape{129, 32}, Shape{384, 96}, Shape{300, 4176}}) {
    RandomWeight source(Format::nvfp4, shape.out, shape.in, 21);
    PackedWeight panels(source, Layout::panels), columns(source, Layout::columns);
    for_each_cpu_variant([&] {
      for (int zeros : {0, 50, 91, 99, 100}) {
        for (int32_t count : {1, 2, 12, 13, 66}) {
          std::mt19937 random(uint32_t(zeros + count));
          const auto thin_out = [&](Product& product) {
            random.seed(uint32_t(zeros + count));
            for (float& value : product.x) {
              if (int(random() % 100) < zeros) value = random() % 2 ? 0.0f : -0.0f;
            }
            if (zeros == 91 && count > 1) {
              product.x[0] = std::nanf("");
              product.x[size_t(product.stride) + 5] = std::numeric_limits<float>::infinity();
            }
          };
          Product dense(count, shape.in, shape.out, 22), alone(1, shape.in, shape.out, 22);
          thin_out(dense);
          dense.run(plan_matmul(panels.view), panels.view, 0, 0, shape.out);
          for (int32_t first = 0; first < shape.out; first += 176) {
            for (int32_t last : {first + 1, first + 150, shape.out}) {
              last = std::min(last, shape.out);
              Product sparse(count, shape.in, last - first, 22);
              thin_out(sparse);
              sparse.run(plan_matmul(columns.view), columns.view, 0, first, last);
              for (size_t m = 0; m < size_t(count); m++) {
                CHECK(same_bits(sparse.y_rows[m], dense.y_rows[m] + first, last - first));
              }
            }
          }
          for (int32_t m = 0; m < count; m += 13) {
            std::copy_n(dense.x_rows[size_t(m)], dense.stride, alone.x.data());
            alone.run(plan_matmul(columns.view), columns.view, 0, 0, shape.out);
            CHECK(same_bits(alone.y_rows[0], dense.y_rows[size_t(m)], shape.out));
          }
        }
      }
    });
  }
}

TEST(matmul_decodes_every_code_and_scale) {
  // One input at a time: y is the decoded element itself, exact.
  for (Format format : {Format::e4m3, Format::nvfp4}) {
    RandomWeight source(format, 256, 48, 15);
    std::fill(source.row_scales.begin(), source.row_scales.end(), 1.0f);
    for (Layout layout : {Layout::panels, Layout::columns}) {
      if (layout == Layout::columns && format != Format::nvfp4) continue;
      PackedWeight packed(source, layout);
      for_each_cpu_variant([&] {
        for (int32_t k = 0; k < 48; k++) {
          Product product(1, 48, 256, 16);
          std::fill(product.x.begin(), product.x.end(), 0.0f);
          product.x[size_t(k)] = 1.0f;
          product.run_planned(packed.view, 0, 0, 256);
          for (int32_t n = 0; n < 256; n++) CHECK_EQ(double(product.y_rows[0][n]), source.value(n, k));
        }
      });
    }
  }
}

TEST(cpu_variant_selection) {
  std::string before = cpu_variant();
  CHECK(!select_cpu_variant("avx9000"));
  CHECK(!select_cpu_variant(""));
  CHECK_EQ(before, cpu_variant());
  CHECK(select_cpu_variant("portable"));
  CHECK_EQ(std::string("portable"), cpu_variant());
  CHECK(select_cpu_variant(before.c_str()));
}
