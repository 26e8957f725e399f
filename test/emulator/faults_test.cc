// What the CUDA runtime code makes of calls that fail: nothing leaks, and a device that lives on stays usable.
#include "native/runtime/cuda/device.h"
#include "native/runtime/cuda/error.h"
#include "native/runtime/cuda/execution.h"
#include "native/runtime/cuda/timer.h"
#include "test/emulator/test_target.h"
#include "test/runtime/fixture.h"

namespace nibblet {
namespace {

using emulated::FailingCall;
using emulated::FaultRecorder;
using test::call;
using test::error_of;
using test::Machine;
using test::Outcomes;

/// What exists on all emulated GPUs.
struct Census {
  size_t handles = emulated::live_handles();
  size_t device_bytes = emulated::allocated_bytes();
  size_t pinned_bytes = emulated::pinned_bytes();
};

#define CHECK_SAME(before)                             \
  do {                                                 \
    const Census now;                                  \
    CHECK_EQ(now.handles, (before).handles);           \
    CHECK_EQ(now.device_bytes, (before).device_bytes); \
    CHECK_EQ(now.pinned_bytes, (before).pinned_bytes); \
  } while (false)

std::shared_ptr<Stream> open(const std::shared_ptr<Device>& device) {
  return std::make_shared<Stream>(device, 1);
}

/// Sets every byte of a tensor.
class Fill : public Command {
 public:
  Fill(Tensor tensor, int value) : tensor_(std::move(tensor)), value_(value) {}
  const char* name() const override { return "fill"; }
  void run(const Execution&) override {}
  void enqueue(const CudaExecution& execution) override {
    check_cuda(cudaMemsetAsync(tensor_.as<void>(), value_, tensor_.bytes(), execution.target.stream), "fill");
  }

 private:
  const Tensor tensor_;
  const int value_;
};

__global__ void trap() { __trap(); }

class Trap : public Command {
 public:
  const char* name() const override { return "trap"; }
  void run(const Execution&) override {}
  void enqueue(const CudaExecution& execution) override {
    check_cuda(launch(execution.target, {dim3(1), dim3(1)}, trap), "trap");
  }
};

/// One step of a graph of that command.
Outcome launch_once(Stream& stream, std::shared_ptr<Command> command, Tensor result) {
  return test::outcome_of([&](Completion done) {
    stream.begin_capture();
    stream.enqueue(std::move(command));
    stream.launch(stream.end_capture(std::move(result), false), test::make_input_of({1, 2, 3}), nullptr,
                  std::move(done));
  });
}

void check_fills(const std::shared_ptr<Device>& device, const Tensor& tensor, int value) {
  const auto stream = open(device);
  const Outcome outcome = launch_once(*stream, std::make_shared<Fill>(tensor, value), tensor);
  CHECK(!outcome.error);
  CHECK(outcome.bytes == std::vector<uint8_t>(tensor.bytes(), uint8_t(value)));
  stream->close();
}

TEST(emulator_fails_the_call_that_it_is_told_to) {
  cudaEvent_t event = nullptr;
  {
    const FailingCall failing(cudaErrorMemoryAllocation, 1, "cudaEventCreateWithFlags");
    CHECK_EQ(cudaEventCreate(&event), cudaSuccess);
    CHECK(failing.failed() == "");
    cudaEvent_t other = nullptr;
    CHECK_EQ(cudaEventCreate(&other), cudaErrorMemoryAllocation);
    CHECK(failing.failed() == "cudaEventCreateWithFlags");
    CHECK_EQ(cudaGetLastError(), cudaErrorMemoryAllocation);
    CHECK(other == nullptr);
    CHECK_EQ(cudaEventRecord(event), cudaSuccess);
  }
  {
    const FailingCall failing(cudaErrorUnknown);
    CHECK_EQ(cudaEventSynchronize(event), cudaErrorUnknown);
    CHECK_EQ(cudaEventSynchronize(event), cudaSuccess);
    CHECK(failing.failed() == "cudaEventSynchronize");
  }
  CHECK_EQ(cudaEventSynchronize(event), cudaSuccess);
  const size_t handles = emulated::live_handles();
  CHECK_EQ(cudaEventDestroy(event), cudaSuccess);
  CHECK_EQ(emulated::live_handles(), handles - 1);
  cudaGetLastError();
}

TEST(emulator_a_stream_whose_construction_fails_frees_what_it_made) {
  const auto device = Device::open("cuda:0");
  int calls = 0;
  for (;; ++calls) {
    const Census before;
    std::shared_ptr<Stream> stream;
    std::optional<Error> error;
    std::string failed;
    {
      const FailingCall failing(cudaErrorMemoryAllocation, calls);
      error = error_of([&] { stream = open(device); });
      failed = failing.failed();
    }
    if (stream) {
      stream->close();
      stream.reset();
      CHECK_SAME(before);
      break;
    }
    CHECK_ERROR("OUT_OF_MEMORY", error, "free memory on the GPU");
    CHECK(!failed.empty());
    CHECK_SAME(before);
  }
  // The device, the stream, the memory of steps with its events, the events of staging.
  CHECK(calls >= 1 + 1 + 1 + 4 + 3);
}

TEST(emulator_a_device_that_cannot_be_opened_frees_what_it_made) {
  int calls = 0;
  for (;; ++calls) {
    const Census before;
    std::shared_ptr<Device> device;
    std::optional<Error> error;
    {
      const FailingCall failing(cudaErrorDevicesUnavailable, calls);
      error = error_of([&] { device = open_cuda_device("cuda:0"); });
    }
    if (device) {
      device.reset();
      CHECK_SAME(before);
      break;
    }
    CHECK_ERROR("NO_DEVICE", error, "cudaErrorDevicesUnavailable");
    CHECK_SAME(before);
  }
  CHECK(calls >= 5);
}

TEST(emulator_a_timer_frees_what_it_made) {
  const Census before;
  const FailingCall failing(cudaErrorMemoryAllocation, 1);
  CHECK_THROWS("OUT_OF_MEMORY", CudaTimer timer(nullptr));
  CHECK_SAME(before);
}

TEST(emulator_a_job_that_fails_in_any_call_ends_its_stream_alone) {
  const auto device = Device::open("cuda:0");
  const Tensor tensor{std::make_shared<Buffer>(device, 6000), 0, DType::u8, {6000}};
  int calls = 0;
  for (;; ++calls) {
    const Census before;
    bool failed = false;
    {
      const auto stream = open(device);
      // The threads of the stream are up.
      CHECK(!test::sync(*stream).error);
      Outcome outcome;
      {
        const FailingCall failing(cudaErrorMemoryAllocation, calls);
        outcome = launch_once(*stream, std::make_shared<Fill>(tensor, 7), tensor);
        failed = !failing.failed().empty();
      }
      if (failed) {
        CHECK_ERROR("OUT_OF_MEMORY", outcome.error, "cudaErrorMemoryAllocation");
        CHECK(outcome.bytes.empty());
        CHECK_ERROR("OUT_OF_MEMORY", test::read(*stream, tensor).error, "cudaErrorMemoryAllocation");
      } else {
        CHECK(!outcome.error);
      }
      stream->close();
    }
    CHECK_SAME(before);
    check_fills(device, tensor, calls);
    CHECK_SAME(before);
    if (!failed) break;
  }
  // A capture, an upload, a launch, a copy back and what they wait for.
  CHECK(calls >= 15);
}

TEST(emulator_a_lost_gpu_is_told_at_once) {
  const auto device = Device::open("cuda:0");
  const Tensor tensor{std::make_shared<Buffer>(device, 64), 0, DType::u8, {64}};
  const auto stream = open(device);
  {
    const FaultRecorder recorder;
    const Outcome outcome = launch_once(*stream, std::make_shared<Trap>(), tensor);
    CHECK_ERROR("STREAM_FAILED", outcome.error, "cudaErrorLaunchFailure", "start another");
  }
  CHECK_ERROR("STREAM_FAILED", test::read(*stream, tensor).error, "start another");
  // What the next requests, and loading the model once more, run into.
  for (int round = 0; round < 2; ++round) {
    CHECK_THROWS("STREAM_FAILED", open(device), "cudaErrorLaunchFailure", "start another");
    CHECK_THROWS("STREAM_FAILED", Buffer(device, 64), "cudaErrorLaunchFailure", "start another");
    CHECK_THROWS("STREAM_FAILED", open_cuda_device("cuda:0"), "cudaErrorLaunchFailure", "start another");
  }
  stream->close();
  CHECK_EQ(cudaDeviceReset(), cudaSuccess);
  check_fills(device, tensor, 9);
}

TEST(emulator_the_process_lives_on_after_out_of_memory) {
  const Machine machine({.memory_bytes = size_t{64} << 20});
  const auto device = Device::open("cuda:0");
  const Tensor tensor{std::make_shared<Buffer>(device, 64), 0, DType::u8, {64}};
  const Census before;
  const int64_t allocated = device->allocated_bytes();
  CHECK_THROWS("OUT_OF_MEMORY", Buffer(device, size_t{65} << 20), "68157440 bytes", "'cuda:0'",
               std::to_string(device->available_bytes()) + " available", "contextLength");
  CHECK_EQ(device->allocated_bytes(), allocated);
  CHECK_SAME(before);
  check_fills(device, tensor, 3);
  {
    // So little is left that a stream does not fit either; one does when it is free again.
    const Buffer most(device, device->available_bytes());
    CHECK_THROWS("OUT_OF_MEMORY", open(device), "'cuda:0'");
  }
  check_fills(device, tensor, 4);
  CHECK_SAME(before);
}

TEST(emulator_a_gpu_without_machine_code_is_named_with_what_the_build_holds) {
  const Machine machine({.capability = 75});
  for (const cudaError_t error : {cudaErrorNoKernelImageForDevice, cudaErrorInvalidDeviceFunction}) {
    const FailingCall failing(error, 0, "cudaFuncGetAttributes");
    CHECK_THROWS("NO_DEVICE", open_cuda_device("cuda:0"), "'cuda:0'", "sm_75",
                 "machine code for " NIBBLET_CUDA_ARCHS, "NIBBLET_CUDA_ARCHS", cudaGetErrorString(error));
  }
  CHECK_EQ(cudaGetLastError(), cudaSuccess);
}

TEST(emulator_a_machine_without_the_gpu_is_told_why) {
  const auto check = [](emulated::Configuration other, const char* text) {
    const Machine machine(other);
    CHECK_THROWS("NO_DEVICE", open_cuda_device("cuda:1"), "'cuda:1'", text);
    CHECK_EQ(cudaGetLastError(), cudaSuccess);
  };
  check({.driver = 0}, "no NVIDIA driver");
  check({.driver = 12040}, "supports CUDA 12.4");
  check({.devices = 0}, "shows 0 GPUs");
  check({.devices = 1}, "shows 1 GPU;");
}

}  // namespace
}  // namespace nibblet
