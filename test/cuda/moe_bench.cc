#include <memory>
#include <string>

#include "kernels/moe/cuda.h"
#include "kernels/moe/plan.h"
#include "kernels/pack/pack.h"
#include "test/cuda/device.h"

/// Times of a layer of Nemotron-3-Nano-30B-A3B. Weights are random, the same for every expert, each in its own memory.
namespace nibblet::test {
namespace {

constexpr int32_t kHidden = 2688, kExperts = 128, kTopK = 6, kWidth = 1856, kSharedWidth = 3712;
/// Of the real model's activations so many are not zero.
constexpr double kLive = 1 - 0.9069;
constexpr double kRoofline = 3080;  // GB/s of an H100

/// `matrices` matrices with the same random contents.
struct BenchWeights {
  DeviceArray<uint8_t> bytes;
  DeviceArray<float> row_scales;
  WeightView view;

  BenchWeights(Layout layout, int32_t matrices, int32_t out, int32_t in, float scale)
      : bytes(size_t(matrices) * packed_matrix_bytes(Format::nvfp4, layout, out, in)),
        row_scales(std::vector<float>(size_t(matrices) * size_t(out), scale)) {
    const size_t size = bytes.size() / size_t(matrices);
    view = {Format::nvfp4, layout, matrices, out, in, bytes.data(), size, row_scales.data(), 0};
    Random random(uint64_t(out) + uint64_t(layout));
    std::vector<uint8_t> codes(size_t(out) * size_t(in) / 2), scales(size_t(out) * size_t(in) / 16);
    for (uint8_t& byte : codes) byte = uint8_t(random.bits());
    for (uint8_t& byte : scales) byte = uint8_t(0x30 + random.below(16));
    std::vector<uint8_t> matrix(size, 0);
    std::atomic<int64_t> bad{0};
    pack({Format::nvfp4, layout, out, in, 0, out, codes.data(), scales.data(), matrix.data(), &bad}, 0, 0, 1);
    for (int32_t m = 0; m < matrices; ++m) {
      check_cuda(cudaMemcpy(bytes.data() + size_t(m) * size, matrix.data(), size, cudaMemcpyHostToDevice),
                 "weights");
    }
    check_cuda(cudaDeviceSynchronize(), "weights");
  }
};

/// Biases that decide which activations live.
std::vector<float> deciding_biases(size_t count, uint64_t seed) {
  Random random(seed);
  std::vector<float> values(count);
  for (float& value : values) value = random.uniform() < kLive ? 20.0f : -20.0f;
  return values;
}

struct BenchLayer {
  BenchWeights up, down;
  std::vector<std::unique_ptr<BenchWeights>> shared_up, shared_down;
  DeviceArray<float> norm, router, up_bias, shared_up_bias;

  explicit BenchLayer(int copies)
      : up(Layout::fragments, kExperts, kWidth, kHidden, 1.0f / 256),
        down(Layout::columns, kExperts, kHidden, kWidth,
             1e-9f),  // x stays what it is, and so does the routing
        norm(std::vector<float>(kHidden, 1.0f)),
        router(Random(3).normals(size_t(kExperts) * kHidden, 1 / std::sqrt(double(kHidden)))),
        up_bias(deciding_biases(size_t(kExperts) * kWidth, 4)),
        shared_up_bias(deciding_biases(kSharedWidth, 5)) {
    for (int i = 0; i < copies; ++i) {
      shared_up.push_back(
          std::make_unique<BenchWeights>(Layout::fragments, 1, kSharedWidth, kHidden, 1.0f / 256));
      shared_down.push_back(std::make_unique<BenchWeights>(Layout::columns, 1, kHidden, kSharedWidth, 1e-9f));
    }
  }
};

/// One of the calls that follow each other: experts of its own, and its own workspace.
struct BenchCall {
  DeviceArray<float> bias;
  std::unique_ptr<DeviceArray<uint8_t>> workspace, counters;
  MoeArgs args;

  BenchCall(BenchLayer& layer, int copy, float* x, int32_t tokens)
      : bias(biases(copy, tokens)),
        args{tokens,
             kHidden,
             x,
             layer.norm.data(),
             1e-5f,
             false,
             layer.router.data(),
             bias.data(),
             kExperts,
             kTopK,
             1,
             1,
             true,
             2.5f,
             layer.up.view,
             layer.down.view,
             layer.shared_up[size_t(copy)]->view,
             layer.shared_down[size_t(copy)]->view,
             layer.up_bias.data(),
             nullptr,
             layer.shared_up_bias.data(),
             nullptr,
             nullptr} {
    const CudaScratch scratch = moe_cuda_scratch(args, cuda_target());
    // Room for more parts than the plan makes.
    workspace = std::make_unique<DeviceArray<uint8_t>>(scratch.workspace + (size_t{4} << 20));
    counters = std::make_unique<DeviceArray<uint8_t>>(scratch.counters, 0);
  }
  MoePlan plan(const Step* step) const {
    return moe_plan(args, step, workspace->data(), counters->data(), cuda_target());
  }

 private:
  /// One token goes to experts of the copy's own; many go where the router sends them, all experts about as often.
  static std::vector<float> biases(int copy, int32_t tokens) {
    std::vector<float> values = Random(uint64_t(copy)).normals(kExperts, 0.02);
    for (int k = 0; tokens == 1 && k < kTopK; ++k) values[size_t(copy * kTopK + k * 17) % kExperts] = 100.0f;
    return values;
  }
};

class Bench {
 public:
  Bench(BenchLayer& layer, int32_t tokens, int copies)
      : x_(Random(9).normals(size_t(tokens) * kHidden, 2)), tokens_(tokens) {
    Batch batch;
    for (int32_t t = 0; t < tokens; ++t) batch.add(t, 0, 1);
    step_ = std::make_unique<DeviceStep>(batch.step());
    for (int i = 0; i < copies; ++i) {
      calls_.push_back(std::make_unique<BenchCall>(layer, i, x_.data(), tokens));
    }
    uint64_t zeros = 0, activations = 0;
    for (const auto& call : calls_) {
      DeviceArray<uint64_t> statistics(size_t(kMoeExperts) + kExperts, 0);
      check_cuda(moe_cuda(call->args, step_->data(), statistics.data(), call->workspace->data(),
                          call->counters->data(), cuda_target()),
                 "moe_cuda");
      const std::vector<uint64_t> counts = statistics.read();
      weight_bytes_ += double(counts[kMoeWeightBytes]) / copies;
      zeros += counts[kMoeZeros];
      activations += counts[kMoeActivations];
      for (size_t e = kMoeExperts; e < counts.size(); ++e) touched_ += double(counts[e] > 0) / copies;
    }
    zeros_ = double(zeros) / double(activations);
  }

  /// Runs `work(plan)` for every copy. @param change what to make of each plan before
  template <class Work, class Change>
  double microseconds(const Work& work, const Change& change) {
    std::vector<MoePlan> plans;
    for (const auto& call : calls_) plans.push_back(call->plan(step_->data()));
    for (MoePlan& plan : plans) change(plan);
    return graph_microseconds(int(plans.size()), 15,
                              [&](int i) { check_cuda(work(plans[size_t(i)], cuda_target()), "moe"); });
  }
  template <class Work>
  double microseconds(const Work& work) {
    return microseconds(work, [](MoePlan&) {});
  }

  void report(const char* what, double time, double bytes) const {
    std::printf("    %4d tokens  %-28s %8.2f us  %6.0f GB/s  %5.1f %%\n", tokens_, what, time,
                bytes / time / 1e3, 100 * bytes / time / 1e3 / kRoofline);
    std::fflush(stdout);
  }
  double weight_bytes() const { return weight_bytes_; }
  double zeros() const { return zeros_; }
  double touched() const { return touched_; }

 private:
  DeviceArray<float> x_;
  int32_t tokens_;
  std::unique_ptr<DeviceStep> step_;
  std::vector<std::unique_ptr<BenchCall>> calls_;
  double weight_bytes_ = 0, zeros_ = 0;
  double touched_ = 0;
};

cudaError_t whole(const MoePlan& plan, const CudaTarget& target) {
  cudaError_t error = moe_route(plan, target);
  if (error == cudaSuccess) error = plan.alone ? moe_up_alone(plan, target) : moe_up_tiles(plan, target);
  return error == cudaSuccess ? moe_down(plan, target) : error;
}

double up_bytes(const BenchLayer& layer, double experts) {
  return experts * double(layer.up.view.matrix_bytes) + double(layer.shared_up[0]->view.matrix_bytes);
}

void bench_one(BenchLayer& layer, int copies) {
  Bench bench(layer, 1, copies);
  const double router = 4.0 * kExperts * kHidden, up = up_bytes(layer, kTopK);
  std::printf("    one token: %.1f MB of experts, %.1f %% zeros, %.0f experts a call, %d calls\n",
              bench.weight_bytes() / 1e6, 100 * bench.zeros(), bench.touched(), copies);
  bench.report("layer", bench.microseconds(whole), router + bench.weight_bytes());
  bench.report("route", bench.microseconds(moe_route), router);
  bench.report("up", bench.microseconds(moe_up_alone), up);
  bench.report("down", bench.microseconds(moe_down_skip), bench.weight_bytes() - up);
  bench.report("route, up", bench.microseconds([](const MoePlan& plan, const CudaTarget& target) {
    const cudaError_t error = moe_route(plan, target);
    return error == cudaSuccess ? moe_up_alone(plan, target) : error;
  }),
               router + up);
  for (const int32_t splits : {1, 2, 3}) {
    const auto change = [&](MoePlan& plan) {
      plan.routed_splits = splits;
      plan.shared_splits = 2 * splits;
      plan.parts = splits * (kTopK + 2);
    };
    const std::string name = "down, " + std::to_string(splits * (kTopK + 2)) + " parts";
    bench.report(name.c_str(), bench.microseconds(moe_down_skip, change), bench.weight_bytes() - up);
  }
}

void bench_many(BenchLayer& layer, int32_t tokens) {
  Bench bench(layer, tokens, 2);
  const double up = up_bytes(layer, bench.touched());
  std::printf("    %d tokens: %.1f MB of experts, %.1f %% zeros, %.1f experts\n", tokens,
              bench.weight_bytes() / 1e6, 100 * bench.zeros(), bench.touched());
  bench.report("layer", bench.microseconds(whole), bench.weight_bytes());
  bench.report("route", bench.microseconds(moe_route), 4.0 * kExperts * kHidden);
  bench.report("up", bench.microseconds(moe_up_tiles), up);
  if (tokens <= 64) bench.report("down", bench.microseconds(moe_down_gather), bench.weight_bytes() - up);
  const auto dense = [](MoePlan& plan) {
    plan.skips = false;
    plan.parts = kTopK + 1;
  };
  bench.report("down, all columns", bench.microseconds(moe_down_tiles, dense), up);
}

}  // namespace

TEST(cuda_bench_moe) {
  if (!benchmarks_asked_for()) return;
  constexpr int kCopies = 8;
  BenchLayer layer(kCopies);
  bench_one(layer, kCopies);
  for (const int32_t tokens : {2, 8, 32, 64, 512}) bench_many(layer, tokens);
}

}  // namespace nibblet::test
