#pragma once

#include <algorithm>
#include <memory>

#include "kernels/linear/cuda.h"
#include "kernels/linear/cuda_plan.h"
#include "kernels/pack/cuda.h"
#include "test/cuda/compact.h"
#include "test/cuda/device.h"
#include "test/kernels/bounded.h"
#include "test/kernels/harness.h"
#include "test/kernels/inputs.h"
#include "test/kernels/weights.h"

/// Linears on the device, for the tests of what they give and of how long they take.
namespace nibblet::test {

/// Those that linear has kernels for on a GPU. Unless made otherwise, one element in 16 of a compact weight is an exception.
constexpr Format kLinearFormats[] = {Format::f32, Format::bf16, Format::e4m3, Format::nvfp4,
                                     Format::compact_bf16};
inline Format source_format(Format format) { return format == Format::compact_bf16 ? Format::bf16 : format; }

struct LinearCase {
  Format format;
  int32_t out, in;
  int32_t capacity;
  int32_t tokens;  ///< rows of y that the step has
  bool norm = false, bias = false, relu2 = false, add = false, selected = false;
  DType x_type = DType::f32, y_type = DType::f32;
  /// Rows of the weight repeat after so many.
  int32_t distinct = 1024;
};

inline Layout linear_layout(Format format) {
  return format == Format::f32 ? Layout::rows : Layout::fragments;
}

/// A weight on the device, packed there.
struct DeviceLinearWeight {
  RandomWeight source;
  std::vector<float> row_scales;
  DeviceArray<float> scales;
  std::unique_ptr<DeviceArray<uint8_t>> matrix;
  WeightView view;

  DeviceLinearWeight(Format format, int32_t out, int32_t in, int32_t distinct)
      : DeviceLinearWeight(format, out, in,
                           RandomWeight(source_format(format), std::min(out, distinct), in, 21)) {}
  /// @param rows  the weight's first rows, which the others repeat
  DeviceLinearWeight(Format format, int32_t out, int32_t in, RandomWeight rows)
      : source(std::move(rows)), row_scales(size_t(out)), scales(size_t(out)) {
    const Layout layout = linear_layout(format);
    matrix = std::make_unique<DeviceArray<uint8_t>>(packed_matrix_bytes(source.format, layout, out, in), 0);
    for (size_t n = 0; n < row_scales.size(); n++) {
      row_scales[n] = std::ldexp(1.0f + float(n * 37 % 1000) / 999, -7);
    }
    scales.write(row_scales.data());
    const DeviceArray<uint8_t> elements(source.elements), block_scales(source.block_scales);
    for (int32_t first = 0; first < out; first += source.out) {
      const PackArgs args = {source.format,
                             layout,
                             out,
                             in,
                             first,
                             std::min(source.out, out - first),
                             elements.data(),
                             block_scales.data(),
                             matrix->data(),
                             nullptr};
      check_cuda(pack_cuda(args, cuda_target()), "pack_cuda");
    }
    cuda_sync();
    if (format == Format::compact_bf16) matrix = std::move(DeviceCompact(matrix->data(), out, in).matrix);
    view = {format, layout, 1, out, in, matrix->data(), matrix->size(), scales.data(), 0};
  }
};

/// What a call has beside its operands.
struct LinearScratch {
  DeviceArray<uint8_t> workspace, counters;

  LinearScratch(const LinearArgs& args, const LinearPlan& plan)
      : workspace(linear_cuda_scratch(args, plan).workspace),
        counters(linear_cuda_scratch(args, plan).counters, 0) {}
  bool left_as_it_must_be() const {
    const std::vector<uint8_t> bytes = counters.read();
    return workspace.guards_intact() && counters.guards_intact() &&
           std::all_of(bytes.begin(), bytes.end(), [](uint8_t byte) { return byte == 0; });
  }
};

/// One linear on the device with operands of its own.
class DeviceLinear {
 public:
  explicit DeviceLinear(const LinearCase& c, const DeviceLinearWeight& weight)
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

  LinearPlan plan() const { return plan_linear_cuda(args_, cuda_target()); }

  const LinearArgs& args() const { return args_; }
  const Step* step() const { return step_->data(); }
  /// Fewer rows than it was made with; not for selected ones.
  void set_tokens(int32_t tokens) {
    c_.tokens = tokens;
    Step* step = const_cast<Step*>(step_->data());
    check_cuda(cudaMemcpy(&step->tokens, &tokens, sizeof tokens, cudaMemcpyHostToDevice), "write");
    check_cuda(cudaDeviceSynchronize(), "write");
  }

  /// @return y, padding and all
  Elements run() { return run(plan()); }
  Elements run(const LinearPlan& plan) {
    const LinearScratch scratch(args_, plan);
    reset();
    enqueue(plan, scratch);
    const Elements y = read();
    CHECK(scratch.left_as_it_must_be());
    return y;
  }
  /// Its parts, for calls in other orders.
  void reset() { y_.write(static_cast<const uint8_t*>(before_.data())); }
  void enqueue(const LinearPlan& plan, const LinearScratch& scratch) {
    check_cuda(linear_cuda(args_, step_->data(), scratch.workspace.data(), scratch.counters.data(), plan,
                           cuda_target()),
               "linear_cuda");
  }
  Elements read() {
    const std::vector<uint8_t> bytes = y_.read();
    CHECK(y_.guards_intact());
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

  LinearCase c_;
  const DeviceLinearWeight& weight_;
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

/// Those of nano-30b.
struct LinearShape {
  const char* name;
  Format format;
  int32_t out, in;
  bool norm, add;
  DType x_type, y_type;
};

inline constexpr LinearShape kNanoLinears[] = {
    {"in_proj nvfp4", Format::nvfp4, 10304, 2688, true, false, DType::f32, DType::bf16},
    {"out_proj nvfp4", Format::nvfp4, 2688, 4096, false, true, DType::bf16, DType::f32},
    {"in_proj bf16", Format::bf16, 10304, 2688, true, false, DType::f32, DType::bf16},
    {"out_proj bf16", Format::bf16, 2688, 4096, false, true, DType::bf16, DType::f32},
    {"qkv bf16", Format::bf16, 4608, 2688, true, false, DType::f32, DType::bf16},
    {"head bf16", Format::bf16, 131072, 2688, true, false, DType::f32, DType::f32},
    {"in_proj compact", Format::compact_bf16, 10304, 2688, true, false, DType::f32, DType::bf16},
    {"out_proj compact", Format::compact_bf16, 2688, 4096, false, true, DType::bf16, DType::f32},
    {"qkv compact", Format::compact_bf16, 4608, 2688, true, false, DType::f32, DType::bf16},
    {"head compact", Format::compact_bf16, 131072, 2688, true, false, DType::f32, DType::f32},
    {"in_proj e4m3", Format::e4m3, 10304, 2688, true, false, DType::f32, DType::bf16},
};

}  // namespace nibblet::test
