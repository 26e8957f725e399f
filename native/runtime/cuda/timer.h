#pragma once

#include "native/runtime/cuda/handle.h"

namespace nibblet {

/// Time between two places in a stream, as the GPU sees it.
class CudaTimer {
 public:
  explicit CudaTimer(cudaStream_t stream) : stream_(stream) {}

  void start() { check_cuda(cudaEventRecord(start_.get(), stream_), "cudaEventRecord"); }
  /// Waits for what was enqueued since start(). Seconds.
  float stop() {
    float milliseconds = 0;
    check_cuda(cudaEventRecord(stop_.get(), stream_), "cudaEventRecord");
    check_cuda(cudaEventSynchronize(stop_.get()), "timed work on the GPU");
    check_cuda(cudaEventElapsedTime(&milliseconds, start_.get(), stop_.get()), "cudaEventElapsedTime");
    return milliseconds / 1000;
  }

 private:
  cudaStream_t stream_;
  CudaEvent start_{cudaEventDefault}, stop_{cudaEventDefault};
};

}  // namespace nibblet
