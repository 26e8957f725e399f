#include <algorithm>
#include <memory>

#include "kernels/linear/cuda.h"
#include "kernels/numerics/bf16.h"
#include "kernels/pack/cuda.h"
#include "test/cuda/device.h"
#include "test/kernels/bounded.h"
#include "test/kernels/harness.h"
#include "test/kernels/inputs.h"
#include "test/kernels/weights.h"

namespace nibblet::test {
namespace {

struct Case {
  Format format;
  int32_t out, in;
  int32_t capacity;
  int32_t tokens;  ///< rows of y that the step has
  bool norm = false, bias = false, relu2 = false, add = false, selected = false;
  DType x_type = DType::f32, y_type = DType::f32;
  /// Rows of the weight repeat after so many.
  int32_t distinct = 1024;
};

Layout layout_of(Format format) { return format == Format::f32 ? Layout::rows : Layout::fragments; }

/// A weight on the device, packed there.
struct DeviceWeight {
  RandomWeight source;
  std::vector<float> row_scales;
  DeviceArray<float> scales;
  DeviceArray<uint8_t> matrix;
  WeightView view;

  DeviceWeight(Format format, int32_t out, int32_t in, int32_t distinct)
      : source(format, std::min(out, distinct), in, 21),
        row_scales(size_t(out)),
        scales(size_t(out)),
        matrix(packed_matrix_bytes(format, layout_of(format), out, in), 0),
        view{format, layout_of(format), 1, out, in, matrix.data(), matrix.size(), scales.data(), 0} {
    for (size_t n = 0; n < row_scales.size(); n++) {
      row_scales[n] = std::ldexp(1.0f + float(n * 37 % 1000) / 999, -7);
    }
    scales.write(row_scales.data());
    const DeviceArray<uint8_t> elements(source.elements), block_scales(source.block_scales);
    for (int32_t first = 0; first < out; first += source.out) {
      const PackArgs args = {format,
                             view.layout,
                             out,
                             in,
                             first,
                             std::min(source.out, out - first),
                             elements.data(),
                             block_scales.data(),
                             matrix.data(),
                             nullptr};
      check_cuda(pack_cuda(args, cuda_target()), "pack_cuda");
    }
    cuda_sync();
  }
};

/// One linear on the device with operands of its own.
class Call {
 public:
  explicit Call(const Case& c, const DeviceWeight& weight)
      : c_(c),
        weight_(weight),
        x_rows_(c.selected ? c.capacity + 5 : c.capacity),
        x_stride_(c.in + 8),
        y_stride_(c.out + 3),
        x_host_(c.x_type, random_floats(size_t(x_rows_) * size_t(x_stride_), 22)),
        norm_host_(random_floats(size_t(c.in), 23)),
        bias_host_(random_floats(size_t(c.out), 24)),
        before_(c.y_type, random_floats(size_t(c.capacity) * size_t(y_stride_), 25)),
        x_(static_cast<const uint8_t*>(x_host_.data()), x_host_.size() * dtype_bytes(c.x_type)),
        norm_(norm_host_),
        bias_(bias_host_),
        y_(static_cast<const uint8_t*>(before_.data()), before_.size() * dtype_bytes(c.y_type)),
        step_(make_step()) {
    args_.x = x_.data();
    args_.x_type = c.x_type;
    args_.x_stride = x_stride_;
    static const LogitsRow kSelected{};
    args_.rows = c.selected ? &kSelected : nullptr;
    args_.count = c.capacity;
    args_.norm = c.norm ? norm_.data() : nullptr;
    args_.epsilon = 1e-5f;
    args_.weight = weight.view;
    args_.bias = c.bias ? bias_.data() : nullptr;
    args_.activation = c.relu2 ? Activation::relu2 : Activation::none;
    args_.add = c.add;
    args_.y = y_.data();
    args_.y_type = c.y_type;
    args_.y_stride = y_stride_;
  }

  /// @return y, padding and all
  Elements run() {
    y_.write(static_cast<const uint8_t*>(before_.data()));
    const CudaScratch scratch = linear_cuda_scratch(args_, cuda_target());
    const DeviceArray<uint8_t> workspace(scratch.workspace), counters(scratch.counters, 0);
    check_cuda(linear_cuda(args_, step_->data(), workspace.data(), counters.data(), cuda_target()),
               "linear_cuda");
    const std::vector<uint8_t> bytes = y_.read();
    for (const uint8_t byte : counters.read()) CHECK_EQ(byte, uint8_t(0));
    CHECK(y_.guards_intact());
    CHECK(workspace.guards_intact());
    Elements y(c_.y_type, before_.size());
    std::copy(bytes.begin(), bytes.end(), static_cast<uint8_t*>(y.data()));
    return y;
  }

  /// Output n of row m in float64, with the bound of its error.
  Bounded expected(int32_t m, const std::vector<double>& weights, int32_t n) {
    const std::vector<Bounded>& x = inputs(m);
    double sum = 0, magnitudes = 0, error = 0;
    for (size_t k = 0; k < weights.size(); k++) {
      sum += x[k].value * weights[k];
      magnitudes += std::fabs(x[k].value * weights[k]);
      error += x[k].error * std::fabs(weights[k]);
    }
    const double scale = weight_.row_scales[size_t(n)];
    Bounded value(sum * scale, error * scale + dot_bound(sum * scale, magnitudes * scale, c_.in));
    if (c_.bias) value = value + Bounded(bias_host_[size_t(n)]);
    if (c_.relu2) {
      // The square's derivative at the far end of the error.
      const double high = std::fabs(value.value) + value.error;
      const double square = value.value > 0 ? value.value * value.value : 0;
      value = Bounded(square, high * high - value.value * value.value);
      value.error += half_ulp(square);
    }
    if (c_.add) value = value + Bounded(before_[size_t(m) * size_t(y_stride_) + size_t(n)]);
    return stored(value, c_.y_type);
  }

  /// Compares every `row_step`th output of every row.
  void check(const Elements& y, int32_t row_step = 1) {
    for (int32_t n = 0; n < c_.out; n += row_step) {
      std::vector<double> weights;
      for (int32_t k = 0; k < c_.in; k++) weights.push_back(weight_.source.value(n % weight_.source.out, k));
      for (int32_t m = 0; m < c_.tokens; m++) {
        const Bounded wanted = expected(m, weights, n);
        const double got = y[size_t(m) * size_t(y_stride_) + size_t(n)];
        if (!(std::fabs(got - wanted.value) <= wanted.error) && failures() < 5) describe(m, n);
        CHECK_NEAR(got, wanted.value, wanted.error);
      }
    }
    // What is not the step's is as it was.
    for (int32_t m = 0; m < c_.capacity; m++) {
      const int32_t from = m < c_.tokens ? c_.out : 0;
      const size_t at = size_t(m) * size_t(y_stride_) + size_t(from), count = size_t(y_stride_ - from);
      CHECK(y.part(at, count) == before_.part(at, count));
    }
  }

 private:
  std::unique_ptr<DeviceStep> make_step() {
    // Selected rows: another number of tokens than of rows, in no order.
    Batch batch;
    const int32_t tokens = c_.selected ? (c_.tokens > 0 ? x_rows_ : 0) : c_.tokens;
    if (tokens > 0) batch.add(0, 0, tokens);
    for (int32_t m = 0; c_.selected && m < c_.tokens; m++) batch.rows.push_back({token_of(m), 0});
    return std::make_unique<DeviceStep>(batch.step());
  }

  int32_t token_of(int32_t m) const { return c_.selected ? (m * 7 + 3) % x_rows_ : m; }

  /// x̂ of row m, with the choices that float32 may leave where it is rounded to bf16.
  const std::vector<Bounded>& inputs(int32_t m) {
    std::vector<Bounded>& result = inputs_[size_t(m)];
    if (!result.empty()) return result;
    const size_t start = size_t(token_of(m)) * size_t(x_stride_);
    BoundedSum squares;
    for (size_t k = 0; k < size_t(c_.in); k++)
      squares.add(Bounded(x_host_[start + k]) * Bounded(x_host_[start + k]));
    const Bounded mean = squares.total(c_.in / 128 + 48) / Bounded(double(c_.in));
    const Bounded scale = Bounded(1) / sqrt(mean + Bounded(double(1e-5f)));
    for (size_t k = 0; k < size_t(c_.in); k++) {
      Bounded value = x_host_[start + k];
      if (c_.norm) value = value * scale * Bounded(norm_host_[k]);
      result.push_back(to_bf16(value));
    }
    return result;
  }

  void describe(int32_t m, int32_t n) const {
    std::printf("    %s [%d, %d], %d of %d rows, at (%d, %d):%s%s%s%s%s\n", name_of(c_.format), c_.out, c_.in,
                c_.tokens, c_.capacity, m, n, c_.norm ? " norm" : "", c_.bias ? " bias" : "",
                c_.relu2 ? " relu2" : "", c_.add ? " add" : "", c_.selected ? " selected" : "");
  }

  Case c_;
  const DeviceWeight& weight_;
  int32_t x_rows_;
  int64_t x_stride_, y_stride_;
  Elements x_host_;
  std::vector<float> norm_host_, bias_host_;
  Elements before_;
  DeviceArray<uint8_t> x_;
  DeviceArray<float> norm_, bias_;
  DeviceArray<uint8_t> y_;
  std::unique_ptr<DeviceStep> step_;
  LinearArgs args_{};
  std::vector<std::vector<Bounded>> inputs_ = std::vector<std::vector<Bounded>>(size_t(c_.capacity));
};

/// Runs it twice: right, and the same bits.
void check_case(const Case& c, int32_t row_step = 1) {
  const DeviceWeight weight(c.format, c.out, c.in, c.distinct);
  Call call(c, weight);
  const Elements y = call.run();
  CHECK(call.run() == y);
  call.check(y, row_step);
}

}  // namespace

TEST(cuda_linear_awkward_shapes) {
  for (const Format format : kFormats) {
    for (const int32_t tokens : {1, 2, 7, 20, 64, 130}) {
      for (const int32_t out : {1, 15, 16, 17, 40}) check_case({format, out, 48, tokens, tokens});
      for (const int32_t in : {16, 128, 272}) check_case({format, 33, in, tokens, tokens});
      if (format == Format::nvfp4) continue;
      for (const int32_t in : {1, 17, 31, 100}) check_case({format, 21, in, tokens, tokens});
    }
  }
}

TEST(cuda_linear_model_inputs) {
  for (const Format format : kFormats) {
    for (const int32_t tokens : {1, 9}) {
      Case c = {format, 37, 2688, tokens, tokens};
      c.norm = true;
      check_case(c);
      c.in = 4096;
      c.norm = false;
      c.x_type = DType::bf16;
      check_case(c);
    }
  }
}

TEST(cuda_linear_many_tiles) {
  // Blocks with several tiles, warps with the end of one and the start of the next.
  for (const Format format : {Format::nvfp4, Format::bf16, Format::e4m3}) {
    for (const int32_t tokens : {1, 3, 40}) {
      for (const int32_t in : {16, 352, 1024}) check_case({format, 700, in, tokens, tokens}, 3);
    }
  }
}

TEST(cuda_linear_norm_of_long_rows) {
  // Longer than what threads keep in registers between the two passes.
  Case c = {Format::nvfp4, 20, 9200, 1, 1};
  c.norm = true;
  check_case(c);
  c.format = Format::bf16;
  c.capacity = c.tokens = 2;
  check_case(c);
  c.x_type = DType::bf16;
  check_case(c);
}

TEST(cuda_linear_epilogues) {
  for (const Format format : kFormats) {
    for (const int32_t tokens : {1, 5}) {
      for (int flags = 0; flags < 16; flags++) {
        Case c = {format, 35, 64, tokens, tokens};
        c.bias = flags & 1;
        c.relu2 = flags & 2;
        c.norm = flags & 4;
        c.y_type = flags & 8 ? DType::bf16 : DType::f32;
        c.add = (flags & 8) == 0 && (flags & 1) != 0;
        check_case(c);
      }
    }
  }
}

TEST(cuda_linear_counts_of_the_step) {
  for (const Format format : kFormats) {
    for (const bool selected : {false, true}) {
      for (const auto& [capacity, tokens] :
           {std::pair(1, 0), std::pair(1, 1), std::pair(8, 0), std::pair(8, 3), std::pair(64, 17),
            std::pair(150, 0), std::pair(150, 65)}) {
        Case c = {format, 33, 96, capacity, tokens};
        c.selected = selected;
        c.add = capacity != 8;
        check_case(c);
      }
    }
  }
}

TEST(cuda_linear_every_scale) {
  // Inputs 1, 0, 0 ...: an output is one element times its scale, exactly, whatever the scale and the code.
  for (const int32_t count : {1, 2}) {
    RandomWeight source(Format::nvfp4, 127 * 16, 16, 3);
    for (int32_t n = 0; n < source.out; n++) {
      source.block_scales[size_t(n)] = uint8_t(n / 16);
      source.elements[size_t(n) * 8] = uint8_t(n % 16 | 0x70);
    }
    std::fill(source.row_scales.begin(), source.row_scales.end(), 1.0f);
    const PackedWeight packed(source, Layout::fragments);
    const DeviceArray<uint8_t> matrix(packed.view.data, packed.bytes.size());
    const DeviceArray<float> row_scales(source.row_scales);
    std::vector<float> x_host(size_t(16 * count));
    for (int32_t m = 0; m < count; m++) x_host[size_t(m) * 16] = 1;
    const DeviceArray<float> x(x_host), y(size_t(count) * size_t(source.out));
    LinearArgs args{};
    args.x = x.data();
    args.x_stride = 16;
    args.count = count;
    args.weight = packed.view;
    args.weight.data = matrix.data();
    args.weight.row_scales = row_scales.data();
    args.y = y.data();
    args.y_stride = source.out;
    Batch batch;
    batch.add(0, 0, count);
    const DeviceStep step(batch.step());
    const DeviceArray<uint8_t> workspace(linear_cuda_scratch(args, cuda_target()).workspace);
    check_cuda(linear_cuda(args, step.data(), workspace.data(), nullptr, cuda_target()), "linear_cuda");
    const std::vector<float> values = y.read();
    for (int32_t m = 0; m < count; m++) {
      for (int32_t n = 0; n < source.out; n++) {
        CHECK_EQ(double(values[size_t(m) * size_t(source.out) + size_t(n)]),
                 e2m1_value(n % 16) * e4m3_value(uint8_t(n / 16)));
      }
    }
  }
}

TEST(cuda_linear_keeps_nan) {
  for (const Format format : kFormats) {
    for (const int32_t count : {1, 2}) {
      const DeviceWeight weight(format, 16, 32, 16);
      std::vector<float> x_host(size_t(32 * count), 1.0f);
      x_host[3] = NAN;
      const DeviceArray<float> x(x_host), y(size_t(16 * count));
      LinearArgs args{};
      args.x = x.data();
      args.x_stride = 32;
      args.count = count;
      args.weight = weight.view;
      args.activation = Activation::relu2;
      args.y = y.data();
      args.y_stride = 16;
      Batch batch;
      batch.add(0, 0, count);
      const DeviceStep step(batch.step());
      const DeviceArray<uint8_t> workspace(linear_cuda_scratch(args, cuda_target()).workspace);
      check_cuda(linear_cuda(args, step.data(), workspace.data(), nullptr, cuda_target()), "linear_cuda");
      const std::vector<float> values = y.read();
      for (size_t i = 0; i < values.size(); i++) CHECK_EQ(std::isnan(values[i]), i < 16);
    }
  }
}

TEST(cuda_linear_refuses) {
  const DeviceWeight weight(Format::bf16, 16, 32, 16);
  LinearArgs args{};
  args.count = 1;
  args.weight = weight.view;
  args.weight.layout = Layout::panels;
  CHECK(linear_cuda(args, nullptr, nullptr, nullptr, cuda_target()) == cudaErrorInvalidValue);
}

namespace {

struct RealShape {
  const char* name;
  Format format;
  int32_t out, in;
  bool norm, add;
  DType x_type, y_type;
};

constexpr RealShape kRealShapes[] = {
    {"in_proj nvfp4", Format::nvfp4, 10304, 2688, true, false, DType::f32, DType::bf16},
    {"out_proj nvfp4", Format::nvfp4, 2688, 4096, false, true, DType::bf16, DType::f32},
    {"in_proj bf16", Format::bf16, 10304, 2688, true, false, DType::f32, DType::bf16},
    {"out_proj bf16", Format::bf16, 2688, 4096, false, true, DType::bf16, DType::f32},
    {"qkv bf16", Format::bf16, 4608, 2688, true, false, DType::f32, DType::bf16},
    {"head bf16", Format::bf16, 131072, 2688, true, false, DType::f32, DType::f32},
    {"in_proj e4m3", Format::e4m3, 10304, 2688, true, false, DType::f32, DType::bf16},
};

Case case_of(const RealShape& shape, int32_t tokens) {
  Case c = {shape.format, shape.out, shape.in, tokens, tokens};
  c.norm = shape.norm;
  c.add = shape.add;
  c.x_type = shape.x_type;
  c.y_type = shape.y_type;
  c.selected = shape.out > 100000;
  return c;
}

}  // namespace

TEST(cuda_linear_real_shapes) {
  if (!on_gpu()) return;
  for (const RealShape& shape : kRealShapes) {
    const DeviceWeight weight(shape.format, shape.out, shape.in, 512);
    for (const int32_t tokens : {1, 8, 32, 64}) {
      Call call(case_of(shape, tokens), weight);
      const Elements y = call.run();
      CHECK(call.run() == y);
      call.check(y, shape.out / 61);
    }
  }
}

TEST(cuda_bench_linear) {
  if (!benchmarks_asked_for()) return;
  for (const RealShape& shape : kRealShapes) {
    const DeviceWeight weight(shape.format, shape.out, shape.in, 512);
    // More weights than the second-level cache holds, several times over.
    const int copies = std::max(4, int(250e6 / double(weight.matrix.size())));
    std::vector<std::unique_ptr<DeviceArray<uint8_t>>> matrices;
    for (int i = 1; i < copies; i++) {
      matrices.push_back(std::make_unique<DeviceArray<uint8_t>>(weight.matrix.size()));
      check_cuda(cudaMemcpyAsync(matrices.back()->data(), weight.matrix.data(), weight.matrix.size(),
                                 cudaMemcpyDeviceToDevice, cuda_target().stream),
                 "copy");
    }
    for (const int32_t tokens : {1, 2, 8, 32, 64, 512}) {
      if (tokens == 512 && shape.out > 100000) continue;
      const size_t x_bytes = size_t(tokens) * size_t(shape.in) * dtype_bytes(shape.x_type);
      const size_t y_bytes = size_t(tokens) * size_t(shape.out) * dtype_bytes(shape.y_type);
      const DeviceArray<uint8_t> x(x_bytes, 0x3c), y(y_bytes, 0);
      const DeviceArray<float> norm(std::vector<float>(size_t(shape.in), 1.0f));
      LinearArgs args{};
      args.x = x.data();
      args.x_type = shape.x_type;
      args.x_stride = shape.in;
      args.count = tokens;
      args.norm = shape.norm ? norm.data() : nullptr;
      args.epsilon = 1e-5f;
      args.weight = weight.view;
      args.add = shape.add;
      args.y = y.data();
      args.y_type = shape.y_type;
      args.y_stride = shape.out;
      Batch batch;
      batch.add(0, 0, tokens);
      const DeviceStep step(batch.step());
      const DeviceArray<uint8_t> workspace(linear_cuda_scratch(args, cuda_target()).workspace);
      const double microseconds = graph_microseconds(copies, tokens > 64 ? 5 : 15, [&](int i) {
        args.weight.data = i == 0 ? weight.matrix.data() : matrices[size_t(i) - 1]->data();
        check_cuda(linear_cuda(args, step.data(), workspace.data(), nullptr, cuda_target()), "linear_cuda");
      });
      const double bytes = double(weight.matrix.size() + x_bytes + y_bytes * (shape.add ? 2 : 1));
      const double flops = 2.0 * tokens * shape.out * shape.in;
      std::printf("    %-14s [%d, %d] %3d tokens: %7.2f us, %5.0f GB/s, %5.1f %%, %5.1f TFLOP/s\n",
                  shape.name, shape.out, shape.in, tokens, microseconds, bytes / microseconds / 1000,
                  bytes / microseconds / 1000 / 3080 * 100, flops / microseconds / 1e6);
      std::fflush(stdout);
    }
  }
}

}  // namespace nibblet::test
