#pragma once

#include <cuda_runtime_api.h>

#include "native/runtime/cuda/error.h"

namespace nibblet {

/// Time between two places in a stream, as the GPU sees it.
class CudaTimer {
 public:
  explicit CudaTimer(cudaStream_t stream) : stream_(stream) {
    check_cuda(cudaEventCreateWithFlags(&start_, cudaEventDefault), "cudaEventCreate");
    check_cuda(cudaEventCreateWithFlags(&stop_, cudaEventDefault), "cudaEventCreate");
  }
  ~CudaTimer() {
    if (start_) cudaEventDestroy(start_);
    if (stop_) cudaEventDestroy(stop_);
  }
  CudaTimer(const CudaTimer&) = delete;
  CudaTimer& operator=(const CudaTimer&) = delete;

  void start() { check_cuda(cudaEventRecord(start_, stream_), "cudaEventRecord"); }
  /// Waits for what was enqueued since start(). Seconds.
  float stop() {
    float milliseconds = 0;
    check_cuda(cudaEventRecord(stop_, stream_), "cudaEventRecord");
    check_cuda(cudaEventSynchronize(stop_), "timed work on the GPU");
    check_cuda(cudaEventElapsedTime(&milliseconds, start_, stop_), "cudaEventElapsedTime");
    return milliseconds / 1000;
  }

 private:
  cudaStream_t stream_;
  cudaEvent_t start_ = nullptr, stop_ = nullptr;
};

}  // namespace nibblet
