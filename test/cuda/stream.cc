#include "test/runtime/fixture.h"

using namespace nibblet;
using namespace nibblet::test;

namespace {

/// Fails when it is enqueued, or counts that it was.
class Probe : public Command {
 public:
  Probe(bool fails, int& count) : fails_(fails), count_(count) {}
  const char* name() const override { return "probe"; }
  void run(const Execution&) override {}
  void enqueue(const CudaExecution&) override {
    if (fails_) throw Error("OP_FAILED", "probe: broken", "probe");
    ++count_;
  }

 private:
  const bool fails_;
  int& count_;
};

struct GpuStream {
  std::shared_ptr<Device> device = Device::open("cuda:0");
  std::shared_ptr<Stream> stream = std::make_shared<Stream>(device, 1);
  Tensor tensor{std::make_shared<Buffer>(device, 64), 0, DType::f32, {4}};
  ~GpuStream() { stream->close(); }
};

}  // namespace

TEST(cuda_stream_failure_poisons) {
  for (int round = 0; round < 20; ++round) {
    GpuStream gpu;
    Outcomes outcomes;
    int before = 0, behind = 0;
    gpu.stream->enqueue(std::make_shared<Probe>(false, before));
    gpu.stream->read(gpu.tensor, outcomes.completion());
    gpu.stream->enqueue(std::make_shared<Probe>(true, before));
    // Whatever of these comes after the failure is known finds the stream unusable.
    int waiting = 1;
    const auto error = error_of([&] {
      gpu.stream->enqueue(std::make_shared<Probe>(false, behind));
      gpu.stream->sync(outcomes.completion());
      ++waiting;
      gpu.stream->read(gpu.tensor, outcomes.completion());
      ++waiting;
    });
    if (error) CHECK_ERROR("OP_FAILED", error, "probe: broken");
    const auto all = outcomes.wait(size_t(waiting));
    CHECK(!all[0].error);
    CHECK_EQ(all[0].bytes.size(), size_t{16});
    for (size_t i = 1; i < all.size(); ++i) {
      CHECK_ERROR("OP_FAILED", all[i].error, "probe: broken");
      CHECK(all[i].bytes.empty());
    }
    gpu.stream->close();
    CHECK_EQ(before, 1);
    CHECK_EQ(behind, 0);
  }
}

TEST(cuda_stream_closes_with_work_in_flight) {
  GpuStream gpu;
  Outcomes outcomes;
  for (int i = 0; i < 100; ++i) gpu.stream->read(gpu.tensor, outcomes.completion());
  gpu.stream->close();
  CHECK_EQ(outcomes.wait(100).size(), size_t{100});
}

TEST(cuda_stream_times_the_gaps_between_graphs) {
  GpuStream gpu;
  Outcomes outcomes;
  int count = 0;
  gpu.stream->begin_capture();
  gpu.stream->enqueue(std::make_shared<Probe>(false, count));
  const auto graph = gpu.stream->end_capture(gpu.tensor, false);
  size_t done = 0;
  const auto launch = [&](int times) {
    for (int i = 0; i < times; ++i)
      gpu.stream->launch(graph, make_input_of({1}), nullptr, outcomes.completion());
    outcomes.wait(done += size_t(times));
  };
  launch(2);
  CHECK(gpu.stream->time_gaps(true).empty());
  launch(5);
  const std::vector<float> gaps = gpu.stream->time_gaps(true);
  CHECK_EQ(gaps.size(), size_t{4});
  for (const float gap : gaps) CHECK(gap >= 0 && gap < 1e6f);
  // The last of before, and across a job that is no graph: nothing is between those two.
  launch(1);
  gpu.stream->read(gpu.tensor, outcomes.completion());
  done += 1;
  launch(1);
  CHECK_EQ(gpu.stream->time_gaps(false).size(), size_t{1});
  launch(3);
  CHECK(gpu.stream->time_gaps(false).empty());
}

TEST(cuda_stream_refuses_memory_of_other_devices) {
  GpuStream gpu;
  Outcomes outcomes;
  const auto host = Device::open("cpu");
  const Tensor elsewhere{std::make_shared<Buffer>(host, 64), 0, DType::f32, {4}};
  CHECK_THROWS("INVALID_OPTION", gpu.stream->read(elsewhere, outcomes.completion()), "'cpu'", "'cuda:0'");
  const auto stream = std::make_shared<Stream>(host, 1);
  CHECK_THROWS("INVALID_OPTION", stream->read(gpu.tensor, outcomes.completion()), "'cuda:0'", "'cpu'");
  stream->close();
}
