#pragma once

#include <cuda_runtime_api.h>

#include <utility>

#include "native/runtime/cuda/error.h"

namespace nibblet {

/// Owns an object of the CUDA runtime.
template <class T, cudaError_t (*kDestroy)(T)>
class CudaHandle {
 public:
  CudaHandle() = default;
  explicit CudaHandle(T handle) : handle_(handle) {}
  CudaHandle(CudaHandle&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  CudaHandle& operator=(CudaHandle&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~CudaHandle() {
    // It fails once the GPU is lost or the driver gone. No later call may find that error on the thread's record.
    if (handle_ && kDestroy(handle_) != cudaSuccess) cudaGetLastError();
  }

  T get() const { return handle_; }
  explicit operator bool() const { return handle_ != nullptr; }

 private:
  T handle_ = nullptr;
};

using CudaGraph = CudaHandle<cudaGraph_t, cudaGraphDestroy>;
using CudaGraphExec = CudaHandle<cudaGraphExec_t, cudaGraphExecDestroy>;

/// A stream of the current device. Does not wait for the legacy stream, nor that for it.
class CudaStream : public CudaHandle<cudaStream_t, cudaStreamDestroy> {
 public:
  CudaStream() : CudaHandle(make()) {}

 private:
  static cudaStream_t make() {
    cudaStream_t stream = nullptr;
    check_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate");
    return stream;
  }
};

/// An event of the current device; empty without flags.
class CudaEvent : public CudaHandle<cudaEvent_t, cudaEventDestroy> {
 public:
  CudaEvent() = default;
  explicit CudaEvent(unsigned flags) : CudaHandle(make(flags)) {}

 private:
  static cudaEvent_t make(unsigned flags) {
    cudaEvent_t event = nullptr;
    check_cuda(cudaEventCreateWithFlags(&event, flags), "cudaEventCreate");
    return event;
  }
};

}  // namespace nibblet
