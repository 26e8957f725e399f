#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "kernels/cuda/launch.h"
#include "kernels/step.h"
#include "test/kernels/batch.h"

/// Device memory for tests of CUDA kernels, on a GPU or on the emulator.
namespace nibblet::test {

/// Ends the program: after a CUDA error nothing that follows means anything.
inline void check_cuda(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::printf("    %s: %s\n", what, cudaGetErrorString(error));
  std::fflush(stdout);
  std::_Exit(1);
}

/// The GPU that tests run on; the program ends when there is none.
inline const CudaTarget& cuda_target() {
  static const CudaTarget target = [] {
    cudaDeviceProp properties{};
    check_cuda(cudaSetDevice(0), "cudaSetDevice");
    check_cuda(cudaGetDeviceProperties(&properties, 0), "cudaGetDeviceProperties");
    CudaTarget made{};
    check_cuda(cudaStreamCreateWithFlags(&made.stream, cudaStreamNonBlocking), "cudaStreamCreate");
    made.multiprocessors = properties.multiProcessorCount;
    made.capability = properties.major * 10 + properties.minor;
    made.shared_bytes = properties.sharedMemPerBlockOptin;
    made.programmatic_edges = made.capability >= 90;
    return made;
  }();
  return target;
}

/// False on the emulator, whose tests keep to small shapes.
inline bool on_gpu() {
  static const bool result = [] {
    cudaDeviceProp properties{};
    check_cuda(cudaGetDeviceProperties(&properties, 0), "cudaGetDeviceProperties");
    return std::strcmp(properties.name, "emulated") != 0;
  }();
  return result;
}

/// on_gpu(), and the emulator's log says what it left out.
inline bool only_on_gpu() {
  if (!on_gpu()) std::printf("    none of it runs on the emulator: too large, or of too many steps\n");
  return on_gpu();
}

/// Tests that measure run with NIBBLET_BENCH=1 alone.
inline bool benchmarks_asked_for() {
  const char* asked = std::getenv("NIBBLET_BENCH");
  return asked != nullptr && std::strcmp(asked, "1") == 0;
}

inline void cuda_sync() { check_cuda(cudaStreamSynchronize(cuda_target().stream), "synchronize"); }

/// An array in device memory between guards that must not change; 256-byte aligned.
template <class T>
class DeviceArray {
 public:
  explicit DeviceArray(size_t count, uint8_t fill = 0xff) : count_(count) { place(nullptr, fill); }
  explicit DeviceArray(const std::vector<T>& values) : DeviceArray(values.data(), values.size()) {}
  DeviceArray(const T* values, size_t count) : count_(count) { place(values, 0xff); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;
  ~DeviceArray() { cudaFree(base_); }

  T* data() const { return reinterpret_cast<T*>(base_ + kGuard); }
  size_t size() const { return count_; }
  size_t bytes() const { return count_ * sizeof(T); }

  void write(const T* values) {
    if (count_ == 0) return;
    check_cuda(cudaMemcpy(data(), values, bytes(), cudaMemcpyHostToDevice), "write");
    // It returns once the host's bytes are taken, which can be before they are on the GPU.
    check_cuda(cudaDeviceSynchronize(), "write");
  }
  /// What it holds once all that was enqueued is done.
  std::vector<T> read() const {
    cuda_sync();
    std::vector<T> values(count_);
    if (count_ > 0) check_cuda(cudaMemcpy(values.data(), data(), bytes(), cudaMemcpyDeviceToHost), "read");
    return values;
  }
  bool guards_intact() const {
    cuda_sync();
    const size_t end = kGuard + bytes();
    const bool whole = bytes() <= kStagedBytes;
    std::vector<uint8_t> guards(whole ? end + kGuard : 2 * kGuard);
    check_cuda(cudaMemcpy(guards.data(), base_, whole ? guards.size() : kGuard, cudaMemcpyDeviceToHost),
               "read");
    if (!whole) {
      check_cuda(cudaMemcpy(guards.data() + kGuard, base_ + end, kGuard, cudaMemcpyDeviceToHost), "read");
    }
    const auto intact = [](uint8_t byte) { return byte == 0xa5; };
    return std::all_of(guards.begin(), guards.begin() + kGuard, intact) &&
           std::all_of(guards.end() - kGuard, guards.end(), intact);
  }

 private:
  static constexpr ptrdiff_t kGuard = 256;
  /// Up to this size one copy writes or reads the array with its guards: where several processes share a GPU, every
  /// call that touches its memory waits for a turn, and tests of small shapes do little else.
  static constexpr size_t kStagedBytes = size_t{64} << 10;

  /// @param values  null: all bytes are `fill`
  void place(const T* values, uint8_t fill) {
    const size_t all = bytes() + 2 * kGuard;
    check_cuda(cudaMalloc(&base_, all), "cudaMalloc");
    if (bytes() <= kStagedBytes) {
      std::vector<uint8_t> staged(all, 0xa5);
      if (values == nullptr) {
        std::memset(staged.data() + kGuard, fill, bytes());
      } else if (count_ > 0) {
        std::memcpy(staged.data() + kGuard, values, bytes());
      }
      check_cuda(cudaMemcpy(base_, staged.data(), all, cudaMemcpyHostToDevice), "write");
    } else {
      check_cuda(cudaMemset(base_, 0xa5, all), "cudaMemset");
      if (values == nullptr) {
        check_cuda(cudaMemset(base_ + kGuard, fill, bytes()), "cudaMemset");
      } else {
        check_cuda(cudaMemcpy(data(), values, bytes(), cudaMemcpyHostToDevice), "write");
      }
    }
    // The host does not wait for a memset, nor for the bytes that a copy took; nor does the stream that kernels run on.
    check_cuda(cudaDeviceSynchronize(), "place");
  }

  size_t count_;
  uint8_t* base_ = nullptr;
};

/// What kernels only read: exactly its bytes, so that memcheck sees a read past its end, and no guards.
template <class T>
class DeviceInput {
 public:
  /// Enqueued: cudaDeviceSynchronize must follow.
  DeviceInput(const T* values, size_t count) {
    check_cuda(cudaMalloc(&data_, std::max<size_t>(count * sizeof(T), 1)), "cudaMalloc");
    if (count == 0) return;
    check_cuda(cudaMemcpy(data_, values, count * sizeof(T), cudaMemcpyHostToDevice), "write");
  }
  DeviceInput(const DeviceInput&) = delete;
  DeviceInput& operator=(const DeviceInput&) = delete;
  ~DeviceInput() { cudaFree(data_); }
  T* data() const { return data_; }

 private:
  T* data_ = nullptr;
};

/// A step in device memory, as the runtime puts it there.
class DeviceStep {
 public:
  explicit DeviceStep(const Step& s)
      : ids_(s.ids, size_t(s.tokens)),
        sequence_of_(s.sequence_of, size_t(s.tokens)),
        sequences_(s.sequences, size_t(s.sequence_count)),
        pages_(s.pages, size_t(s.sequence_count) * size_t(s.pages_per_sequence)),
        rows_(s.rows, size_t(s.row_count)),
        sampling_(s.sampling, s.sampling ? size_t(s.row_count) : 0),
        lists_(s.lists, list_words(s)),
        host_{s.tokens,          s.sequence_count,
              s.row_count,       s.pages_per_sequence,
              ids_.data(),       sequence_of_.data(),
              sequences_.data(), pages_.data(),
              rows_.data(),      s.sampling ? sampling_.data() : nullptr,
              lists_.data()},
        step_(&host_, 1) {
    check_cuda(cudaDeviceSynchronize(), "step");
  }
  const Step* data() const { return step_.data(); }

 private:
  static size_t list_words(const Step& s) {
    size_t words = 0;
    for (int32_t r = 0; s.sampling && r < s.row_count; ++r) {
      const Sampling& p = s.sampling[r];
      for (const int32_t end : {p.stop_first + p.stop_count, p.think_end_first + p.think_end_count,
                                p.forced_first + p.forced_count}) {
        if (size_t(end) > words) words = size_t(end);
      }
    }
    return words;
  }

  DeviceInput<int32_t> ids_, sequence_of_;
  DeviceInput<Sequence> sequences_;
  DeviceInput<int32_t> pages_;
  DeviceInput<LogitsRow> rows_;
  DeviceInput<Sampling> sampling_;
  DeviceInput<int32_t> lists_;
  Step host_;
  DeviceInput<Step> step_;
};

/// Median microseconds of `work`, captured once in a CUDA graph of `copies` calls (work(i), so that each can use other
/// memory than the second-level cache holds), over `rounds` replays.
template <class Work>
double graph_microseconds(int copies, int rounds, const Work& work) {
  const cudaStream_t stream = cuda_target().stream;
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  check_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "begin capture");
  for (int i = 0; i < copies; ++i) work(i);
  check_cuda(cudaStreamEndCapture(stream, &graph), "end capture");
  check_cuda(cudaGraphInstantiate(&executable, graph, 0), "instantiate");
  cudaEvent_t start, end;
  check_cuda(cudaEventCreate(&start), "event");
  check_cuda(cudaEventCreate(&end), "event");
  std::vector<float> times;
  for (int round = 0; round < rounds + 2; ++round) {
    check_cuda(cudaEventRecord(start, stream), "record");
    check_cuda(cudaGraphLaunch(executable, stream), "launch");
    check_cuda(cudaEventRecord(end, stream), "record");
    cuda_sync();
    float milliseconds = 0;
    check_cuda(cudaEventElapsedTime(&milliseconds, start, end), "elapsed");
    if (round >= 2) times.push_back(milliseconds);
  }
  std::nth_element(times.begin(), times.begin() + rounds / 2, times.end());
  cudaEventDestroy(start);
  cudaEventDestroy(end);
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
  return 1000.0 * double(times[size_t(rounds / 2)]) / copies;
}

}  // namespace nibblet::test
