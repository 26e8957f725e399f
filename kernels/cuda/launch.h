#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <utility>

namespace nibblet {

/// Where the kernels of an op go, and what they need to know of the machine there.
struct CudaTarget {
  cudaStream_t stream;
  int multiprocessors;
  int capability;           ///< 10 · major + minor, 90 for sm_90
  size_t shared_bytes;      ///< most dynamic shared memory of one block
  bool programmatic_edges;  ///< kernels may start before their predecessor ends (sm_90 and up)
};

struct LaunchShape {
  dim3 grid;
  dim3 block;
  size_t shared_bytes = 0;
};

/// Enqueues a kernel. Every kernel calls grid_dependency_wait() (device.h) before it touches anything that an earlier
/// kernel wrote or reads, or writes anything at all: with programmatic edges it starts while that one still runs.
/// Shared memory above 48 KiB must have been asked for with allow_shared_memory.
template <class... Parameters, class... Arguments>
cudaError_t launch(const CudaTarget& target, const LaunchShape& shape, void (*kernel)(Parameters...),
                   Arguments&&... arguments) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = target.stream;
  config.attrs = &attribute;
  config.numAttrs = target.programmatic_edges ? 1 : 0;
  // Kernels that want different splits of an SM's memory between cache and shared memory do not overlap: the second waits until
  // the SM is empty and can be split anew. So all of them want the same.
  const cudaError_t error =
      cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                           cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
  if (error != cudaSuccess) return error;
  return cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(std::forward<Arguments>(arguments))...);
}

/// Lets a kernel be launched with `bytes` of dynamic shared memory. Cheap enough to be called before each launch.
template <class... Parameters>
cudaError_t allow_shared_memory(void (*kernel)(Parameters...), size_t bytes) {
  if (bytes <= size_t{48} << 10) return cudaSuccess;
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                              cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
}

/// Memory that an op wants beside its operands.
struct CudaScratch {
  size_t workspace;  ///< bytes shared with the other ops of the stream: undefined at the start of a call
  size_t counters;   ///< bytes of the call's own: zero before the first, and every call leaves them zero
};

}  // namespace nibblet
