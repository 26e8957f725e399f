#include <cstring>
#include <thread>

#include "test/emulator/test_target.h"

namespace nibblet {
namespace {

using emulated::allocated_bytes;
using emulated::configuration;
using emulated::FaultRecorder;
using test::Machine;
using test::test_target;

__global__ void add(int* to, int value) { *to += value; }
__global__ void nothing() {}

TEST(emulator_checks_launches_as_cuda_does) {
  auto error_of = [](dim3 grid, dim3 block, size_t shared_bytes) {
    return launch(test_target, {grid, block, shared_bytes}, nothing);
  };
  CHECK_EQ(error_of(dim3(1), dim3(1024), 0), cudaSuccess);
  CHECK_EQ(error_of(dim3(1), dim3(1025), 0), cudaErrorInvalidConfiguration);
  CHECK_EQ(error_of(dim3(1), dim3(32, 33), 0), cudaErrorInvalidConfiguration);
  CHECK_EQ(error_of(dim3(1), dim3(1, 1, 65), 0), cudaErrorInvalidConfiguration);
  CHECK_EQ(error_of(dim3(0), dim3(1), 0), cudaErrorInvalidConfiguration);
  CHECK_EQ(error_of(dim3(1, 65536), dim3(1), 0), cudaErrorInvalidConfiguration);
  CHECK_EQ(cudaGetLastError(), cudaErrorInvalidConfiguration);
  CHECK_EQ(cudaGetLastError(), cudaSuccess);
  CHECK_EQ(error_of(dim3(1), dim3(1), size_t{48} << 10), cudaSuccess);
  CHECK_EQ(error_of(dim3(1), dim3(1), size_t{49} << 10), cudaErrorInvalidValue);
  CHECK_EQ(allow_shared_memory(nothing, size_t{228} << 10), cudaErrorInvalidValue);
  CHECK_EQ(allow_shared_memory(nothing, size_t{227} << 10), cudaSuccess);
  CHECK_EQ(error_of(dim3(1), dim3(1), size_t{227} << 10), cudaSuccess);
  int blocks = 0;
  CHECK_EQ(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, nothing, 256, 100 << 10), cudaSuccess);
  CHECK_EQ(blocks, 2);
  cudaGetLastError();
}

TEST(emulator_accounts_memory) {
  const size_t before = allocated_bytes();
  size_t free = 0, total = 0;
  CHECK_EQ(cudaMemGetInfo(&free, &total), cudaSuccess);
  CHECK_EQ(total, configuration().memory_bytes);
  CHECK_EQ(free, total - before);
  void* memory = nullptr;
  CHECK_EQ(cudaMalloc(&memory, total + 1), cudaErrorMemoryAllocation);
  CHECK_EQ(cudaMalloc(&memory, 1000), cudaSuccess);
  CHECK_EQ(static_cast<unsigned char*>(memory)[999], 0xee);
  CHECK_EQ(allocated_bytes(), before + 1024);
  CHECK_EQ(cudaFree(static_cast<char*>(memory) + 8), cudaErrorInvalidValue);
  CHECK_EQ(cudaFree(memory), cudaSuccess);
  CHECK_EQ(cudaFree(memory), cudaErrorInvalidValue);
  CHECK_EQ(cudaFree(nullptr), cudaSuccess);
  CHECK_EQ(allocated_bytes(), before);
  cudaGetLastError();
}

TEST(emulator_copies_within_allocations) {
  char host[64] = "from the host", back[64] = {};
  char *memory = nullptr, *pinned = nullptr;
  CHECK_EQ(cudaMalloc(&memory, 64), cudaSuccess);
  CHECK_EQ(cudaHostAlloc(&pinned, 64, cudaHostAllocDefault), cudaSuccess);
  CHECK_EQ(cudaMemcpy(memory, host, 64, cudaMemcpyHostToDevice), cudaSuccess);
  CHECK_EQ(cudaMemcpy(pinned, memory, 64, cudaMemcpyDefault), cudaSuccess);
  CHECK_EQ(cudaMemcpy(back, pinned, 64, cudaMemcpyHostToHost), cudaSuccess);
  CHECK_EQ(std::strcmp(host, back), 0);
  CHECK_EQ(cudaMemcpy(memory + 1, host, 64, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
  CHECK_EQ(cudaMemcpy(memory, host, 64, cudaMemcpyDeviceToHost), cudaErrorInvalidValue);
  CHECK_EQ(cudaMemset(memory, 5, 65), cudaErrorInvalidValue);
  CHECK_EQ(cudaMemset(memory, 5, 64), cudaSuccess);
  CHECK_EQ(cudaMemcpy(back, memory, 64, cudaMemcpyDeviceToHost), cudaSuccess);
  CHECK_EQ(back[63], 5);
  CHECK_EQ(cudaHostRegister(host, 64, cudaHostRegisterDefault), cudaSuccess);
  CHECK_EQ(cudaHostRegister(host + 8, 8, cudaHostRegisterDefault), cudaErrorHostMemoryAlreadyRegistered);
  CHECK_EQ(cudaHostUnregister(host), cudaSuccess);
  CHECK_EQ(cudaHostUnregister(host), cudaErrorHostMemoryNotRegistered);
  CHECK_EQ(cudaFree(memory), cudaSuccess);
  CHECK_EQ(cudaFreeHost(pinned), cudaSuccess);
  cudaGetLastError();
}

TEST(emulator_replays_a_captured_graph) {
  cudaStream_t stream = nullptr;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  int* memory = nullptr;
  int value = 3, result = 0;
  CHECK_EQ(cudaMalloc(&memory, sizeof(int)), cudaSuccess);
  CHECK_EQ(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
  CudaTarget target = test_target;
  target.stream = stream;
  CHECK_EQ(cudaMemset(memory, 0, sizeof(int)), cudaSuccess);
  CHECK_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
  CHECK_EQ(launch(target, {dim3(1), dim3(1)}, add, memory, value), cudaSuccess);
  CHECK_EQ(cudaMemcpyAsync(&result, memory, sizeof(int), cudaMemcpyDeviceToHost, stream), cudaSuccess);
  value = 100;
  cudaStreamCaptureStatus status;
  CHECK_EQ(cudaStreamIsCapturing(stream, &status), cudaSuccess);
  CHECK_EQ(status, cudaStreamCaptureStatusActive);
  CHECK_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
  CHECK_EQ(result, 0);
  size_t nodes = 0;
  CHECK_EQ(cudaGraphGetNodes(graph, nullptr, &nodes), cudaSuccess);
  CHECK_EQ(nodes, size_t{2});
  CHECK_EQ(cudaGraphInstantiate(&exec, graph), cudaSuccess);
  CHECK_EQ(cudaGraphDestroy(graph), cudaSuccess);
  for (int round = 1; round <= 3; ++round) {
    CHECK_EQ(cudaGraphLaunch(exec, stream), cudaSuccess);
    CHECK_EQ(cudaStreamSynchronize(stream), cudaSuccess);
    CHECK_EQ(result, 3 * round);
  }
  CHECK_EQ(cudaGraphExecDestroy(exec), cudaSuccess);
  CHECK_EQ(cudaGraphLaunch(exec, stream), cudaErrorInvalidValue);
  CHECK_EQ(cudaStreamDestroy(stream), cudaSuccess);
  CHECK_EQ(cudaFree(memory), cudaSuccess);
  cudaGetLastError();
}

TEST(emulator_unsafe_calls_end_a_capture) {
  cudaStream_t stream = nullptr;
  cudaGraph_t graph = nullptr;
  void* memory = nullptr;
  CHECK_EQ(cudaStreamCreateWithFlags(&stream, cudaStreamDefault), cudaSuccess);
  CHECK_EQ(cudaStreamEndCapture(stream, &graph), cudaErrorStreamCaptureUnmatched);

  CHECK_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
  std::thread([] {
    void* other = nullptr;
    CHECK_EQ(cudaMalloc(&other, 16), cudaSuccess);
    CHECK_EQ(cudaFree(other), cudaSuccess);
  }).join();
  CHECK_EQ(cudaMalloc(&memory, 16), cudaErrorStreamCaptureUnsupported);
  CHECK_EQ(cudaMemsetAsync(memory, 0, 0, stream), cudaErrorStreamCaptureInvalidated);
  CHECK_EQ(cudaStreamEndCapture(stream, &graph), cudaErrorStreamCaptureInvalidated);

  CHECK_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
  CHECK_EQ(cudaStreamSynchronize(stream), cudaErrorStreamCaptureUnsupported);
  CHECK_EQ(cudaStreamEndCapture(stream, &graph), cudaErrorStreamCaptureInvalidated);

  CHECK_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed), cudaSuccess);
  CHECK_EQ(launch(test_target, {dim3(1), dim3(1)}, nothing), cudaErrorStreamCaptureImplicit);
  CHECK_EQ(cudaStreamEndCapture(stream, &graph), cudaErrorStreamCaptureInvalidated);
  CHECK_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  CHECK_EQ(cudaStreamDestroy(stream), cudaSuccess);
  CHECK_EQ(cudaStreamSynchronize(stream), cudaErrorInvalidResourceHandle);
  cudaGetLastError();
}

TEST(emulator_a_capture_forks_and_joins) {
  cudaStream_t first = nullptr, second = nullptr;
  cudaEvent_t fork = nullptr, join = nullptr;
  cudaGraph_t graph = nullptr;
  CHECK_EQ(cudaStreamCreateWithFlags(&first, cudaStreamNonBlocking), cudaSuccess);
  CHECK_EQ(cudaStreamCreateWithFlags(&second, cudaStreamNonBlocking), cudaSuccess);
  CHECK_EQ(cudaEventCreateWithFlags(&fork, cudaEventDisableTiming), cudaSuccess);
  CHECK_EQ(cudaEventCreateWithFlags(&join, cudaEventDisableTiming), cudaSuccess);
  for (const bool joined : {true, false}) {
    CudaTarget target = test_target;
    target.stream = second;
    CHECK_EQ(cudaStreamBeginCapture(first, cudaStreamCaptureModeThreadLocal), cudaSuccess);
    CHECK_EQ(cudaEventRecord(fork, first), cudaSuccess);
    CHECK_EQ(cudaStreamWaitEvent(second, fork), cudaSuccess);
    CHECK_EQ(launch(target, {dim3(1), dim3(1)}, nothing), cudaSuccess);
    CHECK_EQ(cudaEventRecord(join, second), cudaSuccess);
    if (joined) CHECK_EQ(cudaStreamWaitEvent(first, join), cudaSuccess);
    CHECK_EQ(cudaStreamEndCapture(first, &graph), joined ? cudaSuccess : cudaErrorStreamCaptureUnjoined);
    if (!joined) continue;
    size_t nodes = 0;
    CHECK_EQ(cudaGraphGetNodes(graph, nullptr, &nodes), cudaSuccess);
    CHECK_EQ(nodes, size_t{1});
    CHECK_EQ(cudaGraphDestroy(graph), cudaSuccess);
    CHECK_EQ(cudaEventQuery(join), cudaErrorCapturedEvent);
  }
  CHECK_EQ(cudaEventDestroy(fork), cudaSuccess);
  CHECK_EQ(cudaEventDestroy(join), cudaSuccess);
  CHECK_EQ(cudaStreamDestroy(first), cudaSuccess);
  CHECK_EQ(cudaStreamDestroy(second), cudaSuccess);
  cudaGetLastError();
}

TEST(emulator_events_measure) {
  cudaEvent_t start = nullptr, end = nullptr;
  float milliseconds = -1;
  CHECK_EQ(cudaEventCreate(&start), cudaSuccess);
  CHECK_EQ(cudaEventCreate(&end), cudaSuccess);
  CHECK_EQ(cudaEventElapsedTime(&milliseconds, start, end), cudaErrorInvalidResourceHandle);
  CHECK_EQ(cudaEventRecord(start), cudaSuccess);
  CHECK_EQ(cudaEventRecord(end), cudaSuccess);
  CHECK_EQ(cudaEventSynchronize(end), cudaSuccess);
  CHECK_EQ(cudaEventElapsedTime(&milliseconds, start, end), cudaSuccess);
  CHECK(milliseconds >= 0 && milliseconds < 1000);
  CHECK_EQ(cudaEventDestroy(start), cudaSuccess);
  CHECK_EQ(cudaEventDestroy(end), cudaSuccess);
  cudaGetLastError();
}

__global__ void fail() { __trap(); }

TEST(emulator_a_fault_poisons_the_device_until_it_is_reset) {
  {
    const FaultRecorder recorder;
    CHECK_EQ(launch(test_target, {dim3(3), dim3(1)}, fail), cudaSuccess);
    CHECK_EQ(recorder.messages().size(), size_t{1});
  }
  void* memory = nullptr;
  CHECK_EQ(cudaDeviceSynchronize(), cudaErrorLaunchFailure);
  CHECK_EQ(cudaMalloc(&memory, 16), cudaErrorLaunchFailure);
  CHECK_EQ(launch(test_target, {dim3(1), dim3(1)}, nothing), cudaErrorLaunchFailure);
  CHECK_EQ(cudaGetLastError(), cudaErrorLaunchFailure);
  CHECK_EQ(cudaGetLastError(), cudaErrorLaunchFailure);
  CHECK_EQ(cudaDeviceReset(), cudaSuccess);
  CHECK_EQ(launch(test_target, {dim3(1), dim3(1)}, nothing), cudaSuccess);
  CHECK_EQ(cudaGetLastError(), cudaSuccess);
}

TEST(emulator_other_machines) {
  int count = -1;
  cudaDeviceProp properties;
  {
    const Machine machine({.devices = 0});
    CHECK_EQ(cudaGetDeviceCount(&count), cudaErrorNoDevice);
    CHECK_EQ(count, 0);
  }
  {
    const Machine machine({.driver = 0});
    CHECK_EQ(cudaGetDeviceCount(&count), cudaErrorInsufficientDriver);
  }
  const Machine machine({.devices = 2, .multiprocessors = 7, .capability = 80});
  CHECK_EQ(cudaGetDeviceCount(&count), cudaSuccess);
  CHECK_EQ(count, 2);
  CHECK_EQ(cudaSetDevice(2), cudaErrorInvalidDevice);
  CHECK_EQ(cudaGetDeviceProperties(&properties, 1), cudaSuccess);
  CHECK_EQ(properties.major * 10 + properties.minor, 80);
  CHECK_EQ(properties.multiProcessorCount, 7);
  CHECK_EQ(properties.sharedMemPerBlockOptin, size_t{163} << 10);
  CudaTarget target = test_target;
  target.programmatic_edges = true;
  CHECK_EQ(launch(target, {dim3(1), dim3(1)}, nothing), cudaErrorNotSupported);
  cudaGetLastError();
}

__global__ void count_up(unsigned* counter) {
  for (int i = 0; i < 100; ++i) {
    atomicAdd(counter, 1u);
    __syncthreads();
  }
}

TEST(emulator_host_threads_launch_at_once) {
  unsigned counter = 0;
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i)
    threads.emplace_back([&] { launch(test_target, {dim3(3), dim3(64)}, count_up, &counter); });
  for (std::thread& thread : threads) thread.join();
  CHECK_EQ(counter, 4u * 3 * 64 * 100);
}

}  // namespace
}  // namespace nibblet
