#include "test/cuda/linear_call.h"

namespace nibblet::test {
namespace {

/// A linear over copies of its weight that the second-level cache cannot hold, one after another in a graph.
class Bench {
 public:
  explicit Bench(const LinearShape& shape)
      : shape_(shape),
        weight_(shape.format, shape.out, shape.in, rows_of(shape)),
        copies_(std::max(4, int(250e6 / double(weight_.matrix->size())))) {
    for (int i = 1; i < copies_; i++) {
      matrices_.push_back(std::make_unique<DeviceArray<uint8_t>>(weight_.matrix->size()));
      check_cuda(cudaMemcpyAsync(matrices_.back()->data(), weight_.matrix->data(), weight_.matrix->size(),
                                 cudaMemcpyDeviceToDevice, cuda_target().stream),
                 "copy");
    }
  }

  LinearArgs args(int32_t tokens) const {
    LinearArgs args{};
    args.x_type = shape_.x_type;
    args.x_stride = shape_.in;
    args.count = tokens;
    args.epsilon = 1e-5f;
    args.weight = weight_.view;
    args.add = shape_.add;
    args.y_type = shape_.y_type;
    args.y_stride = shape_.out;
    return args;
  }
  LinearPlan plan(int32_t tokens) const { return plan_linear_cuda(args(tokens), cuda_target()); }

  double microseconds(int32_t tokens, const LinearPlan& plan) const {
    LinearArgs args = this->args(tokens);
    const DeviceArray<uint8_t> x(x_bytes(tokens), 0x3c), y(y_bytes(tokens), 0);
    const DeviceArray<float> norm(std::vector<float>(size_t(shape_.in), 1.0f));
    args.x = x.data();
    args.norm = shape_.norm ? norm.data() : nullptr;
    args.y = y.data();
    Batch batch;
    batch.add(0, 0, tokens);
    const DeviceStep step(batch.step());
    const LinearScratch scratch(args, plan);
    return graph_microseconds(copies_, tokens > 64 ? 5 : 15, [&](int i) {
      args.weight.data = i == 0 ? weight_.matrix->data() : matrices_[size_t(i) - 1]->data();
      check_cuda(linear_cuda(args, step.data(), scratch.workspace.data(), scratch.counters.data(), plan,
                             cuda_target()),
                 "linear_cuda");
    });
  }

  void report(int32_t tokens) const {
    const double time = microseconds(tokens, plan(tokens));
    const double rate =
        double(weight_.matrix->size() + x_bytes(tokens) + y_bytes(tokens) * (shape_.add ? 2 : 1)) / time;
    std::printf("    %-14s [%d, %d] %3d tokens: %7.2f us, %5.0f GB/s, %5.1f %%, %5.1f TFLOP/s\n", shape_.name,
                shape_.out, shape_.in, tokens, time, rate / 1000, rate / 30800,
                2e-6 * tokens * shape_.out * shape_.in / time);
    std::fflush(stdout);
  }

  /// The fastest plans of one token.
  void report_plans() const {
    std::vector<std::pair<double, OneTokenPlan>> results;
    const int processors = cuda_target().multiprocessors, tiles = (shape_.out + 15) / 16;
    for (const int blocks : {processors, 2 * processors, 3 * processors, tiles}) {
      if (blocks > tiles || (blocks == tiles && tiles > 6 * processors)) continue;
      for (const int warps : {4, 8}) {
        for (const int stages : {3, 4, 5, 6, 8}) {
          if ((stages == 5 || stages == 8) && shape_.format != Format::compact_bf16) continue;
          LinearPlan plan = this->plan(1);
          plan.one = {blocks, warps, stages};
          if (shared_bytes(plan.one, shape_.format, shape_.out, shape_.in) > cuda_target().shared_bytes)
            continue;
          results.push_back({microseconds(1, plan), plan.one});
        }
      }
    }
    std::sort(results.begin(), results.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
    for (size_t i = 0; i < results.size() && i < 8; i++) {
      const auto& [time, plan] = results[i];
      std::printf("      %7.2f us: %d blocks, %d warps, %d stages, %zu KB\n", time, plan.blocks, plan.warps,
                  plan.stages, shared_bytes(plan, shape_.format, shape_.out, shape_.in) >> 10);
    }
  }

  /// The fastest ways to share row tiles and inputs among warps and blocks, with and without the kernel that prepares inputs.
  void report_splits(int32_t tokens) const {
    std::vector<std::pair<double, TokensPlan>> results;
    for (const bool direct : {false, true}) {
      if (direct && (shape_.norm || shape_.x_type != DType::bf16)) continue;
      for (const int row_tiles : {1, 2, 3, 4, 5}) {
        if (tokens <= 16 ? row_tiles > 2 : row_tiles < 2) continue;
        for (const int splits : {2, 4, 8}) {
          for (const int cuts : {1, 2, 3, 4}) {
            if (cuts > 1 && (splits < 8 || shape_.out > 5000)) continue;
            LinearPlan plan = this->plan(tokens);
            plan.tokens.row_tiles = row_tiles;
            plan.tokens.splits = splits;
            plan.tokens.cuts = cuts;
            plan.tokens.direct = direct;
            if (shared_bytes(plan.tokens, shape_.format) > cuda_target().shared_bytes) continue;
            results.push_back({microseconds(tokens, plan), plan.tokens});
          }
        }
      }
    }
    std::sort(results.begin(), results.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
    const TokensPlan planned = plan(tokens).tokens;
    for (size_t i = 0; i < results.size(); i++) {
      const auto& [time, plan] = results[i];
      const bool ours = plan.row_tiles == planned.row_tiles && plan.splits == planned.splits &&
                        plan.cuts == planned.cuts && plan.direct == planned.direct;
      if (i >= 8 && !ours) continue;
      std::printf("      %7.2f us: %d tokens, %d row tiles, %d splits, %d cuts%s%s\n", time, tokens,
                  plan.row_tiles, plan.splits, plan.cuts, plan.direct ? ", direct" : "",
                  ours ? " (planned)" : "");
    }
  }

 private:
  /// bf16 normally distributed, so that a compact weight has the exceptions that a trained one has.
  static RandomWeight rows_of(const LinearShape& shape) {
    RandomWeight rows(source_format(shape.format), std::min(shape.out, 512), shape.in, 21);
    if (rows.format == Format::bf16) make_normal(rows, 22);
    return rows;
  }

  size_t x_bytes(int32_t tokens) const {
    return size_t(tokens) * size_t(shape_.in) * dtype_bytes(shape_.x_type);
  }
  size_t y_bytes(int32_t tokens) const {
    return size_t(tokens) * size_t(shape_.out) * dtype_bytes(shape_.y_type);
  }

  LinearShape shape_;
  DeviceLinearWeight weight_;
  int copies_;
  std::vector<std::unique_ptr<DeviceArray<uint8_t>>> matrices_;
};

}  // namespace

TEST(cuda_bench_linear) {
  if (!benchmarks_asked_for()) return;
  for (const LinearShape& shape : kNanoLinears) {
    const Bench bench(shape);
    for (const int32_t tokens : {1, 2, 8, 16, 32, 64, 512}) {
      if (tokens < 512 || shape.out < 100000) bench.report(tokens);
    }
  }
}

/// The same matrices in 16 and in 12 bits an element.
TEST(cuda_bench_linear_compact) {
  if (!benchmarks_asked_for()) return;
  for (const char* name : {"head", "in_proj", "out_proj"}) {
    for (const LinearShape& shape : kNanoLinears) {
      const bool bf16 = shape.format == Format::bf16 || shape.format == Format::compact_bf16;
      if (!bf16 || std::strncmp(shape.name, name, std::strlen(name)) != 0) continue;
      const Bench bench(shape);
      for (const int32_t tokens : {1, 8, 64}) bench.report(tokens);
      if (shape.format == Format::compact_bf16) bench.report_plans();
    }
  }
}

TEST(cuda_bench_linear_plans) {
  if (!benchmarks_asked_for()) return;
  for (const LinearShape& shape : kNanoLinears) {
    const Bench bench(shape);
    std::printf("    %s [%d, %d]\n", shape.name, shape.out, shape.in);
    bench.report_plans();
    std::fflush(stdout);
  }
}

TEST(cuda_bench_linear_tokens) {
  if (!benchmarks_asked_for()) return;
  for (const LinearShape& shape : kNanoLinears) {
    const Bench bench(shape);
    std::printf("    %s [%d, %d]\n", shape.name, shape.out, shape.in);
    for (const int32_t tokens : {8, 32, 64}) bench.report_splits(tokens);
    std::fflush(stdout);
  }
}

}  // namespace nibblet::test
