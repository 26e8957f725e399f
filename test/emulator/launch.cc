#include <algorithm>
#include <atomic>
#include <map>

#include "test/emulator/block.h"
#include "test/emulator/control.h"
#include "test/emulator/internal.h"

namespace nibblet::emulated {

static std::atomic<size_t> kernels_run = 0;
size_t launched_kernels() { return kernels_run; }

static std::map<const void*, int>& dynamic_limits() {
  static std::map<const void*, int> limits;
  return limits;
}

constexpr int default_dynamic_limit = 48 << 10;

static int dynamic_limit(const void* function) {
  std::lock_guard lock(registry());
  auto limit = dynamic_limits().find(function);
  return limit == dynamic_limits().end() ? default_dynamic_limit : limit->second;
}

static cudaError_t device_properties(cudaDeviceProp& properties) {
  return report(describe_device(properties, current_device()));
}

static cudaError_t check(const cudaLaunchConfig_t& config, const void* function, bool& programmatic_edge) {
  const dim3 grid = config.gridDim, block = config.blockDim;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || block.x == 0 || block.y == 0 || block.z == 0)
    return cudaErrorInvalidConfiguration;
  if (grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) return cudaErrorInvalidConfiguration;
  if (block.x > 1024 || block.y > 1024 || block.z > 64) return cudaErrorInvalidConfiguration;
  if (uint64_t(block.x) * block.y * block.z > 1024) return cudaErrorInvalidConfiguration;
  if (config.dynamicSmemBytes > size_t(dynamic_limit(function))) return cudaErrorInvalidValue;
  programmatic_edge = false;
  for (unsigned i = 0; i < config.numAttrs; ++i) {
    const cudaLaunchAttribute& attribute = config.attrs[i];
    switch (attribute.id) {
      case cudaLaunchAttributeIgnore:
      case cudaLaunchAttributePriority:
        break;
      case cudaLaunchAttributeProgrammaticStreamSerialization:
        programmatic_edge = attribute.val.programmaticStreamSerializationAllowed != 0;
        if (programmatic_edge && configuration().capability < 90) return cudaErrorNotSupported;
        break;
      case cudaLaunchAttributeClusterDimension:
        // Clusters of more than one block need blocks that run side by side, which is not emulated.
        if (attribute.val.clusterDim.x * attribute.val.clusterDim.y * attribute.val.clusterDim.z != 1)
          return cudaErrorNotSupported;
        break;
      default:
        return cudaErrorNotSupported;
    }
  }
  return cudaSuccess;
}

static cudaError_t execute(const Kernel& kernel) {
  Processor& processor = Processor::current();
  if (!processor.run(kernel)) {
    set_sticky_error(cudaErrorLaunchFailure);
    return cudaSuccess;
  }
  ++kernels_run;
  return cudaSuccess;
}

cudaError_t launch(const cudaLaunchConfig_t& config, const void* function, std::function<void()> body) {
  if (cudaError_t error = injected_error("cudaLaunchKernel"); error != cudaSuccess) return report(error);
  cudaDeviceProp properties;
  if (cudaError_t error = device_properties(properties); error != cudaSuccess) return error;
  bool programmatic_edge;
  if (cudaError_t error = check(config, function, programmatic_edge); error != cudaSuccess)
    return report(error);
  const Shape shape{config.gridDim, config.blockDim, config.dynamicSmemBytes, programmatic_edge};
  auto kernel = std::make_shared<const Kernel>(Kernel{function, shape, std::move(body)});
  return enqueue(config.stream, [kernel] { return execute(*kernel); });
}

}  // namespace nibblet::emulated

using namespace nibblet::emulated;

cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute attribute, int value) {
  if (cudaError_t error = injected_error(__func__); error != cudaSuccess) return report(error);
  cudaDeviceProp properties;
  if (cudaError_t error = device_properties(properties); error != cudaSuccess) return error;
  if (function == nullptr) return report(cudaErrorInvalidDeviceFunction);
  if (attribute == cudaFuncAttributePreferredSharedMemoryCarveout)
    return report(value < -1 || value > 100 ? cudaErrorInvalidValue : sticky_error());
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || value < 0 ||
      size_t(value) > properties.sharedMemPerBlockOptin)
    return report(cudaErrorInvalidValue);
  std::lock_guard lock(registry());
  dynamic_limits()[function] = value;
  return report(sticky_error());
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* function) {
  if (cudaError_t error = injected_error(__func__); error != cudaSuccess) return report(error);
  if (function == nullptr) return report(cudaErrorInvalidDeviceFunction);
  *attributes = {};
  attributes->maxThreadsPerBlock = 1024;
  attributes->numRegs = 32;
  attributes->ptxVersion = attributes->binaryVersion = configuration().capability;
  attributes->maxDynamicSharedSizeBytes = dynamic_limit(function);
  return report(sticky_error());
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* function,
                                                          int block_threads, size_t dynamic_shared_bytes) {
  if (cudaError_t error = injected_error(__func__); error != cudaSuccess) return report(error);
  cudaDeviceProp properties;
  if (cudaError_t error = device_properties(properties); error != cudaSuccess) return error;
  if (function == nullptr) return report(cudaErrorInvalidDeviceFunction);
  if (block_threads < 1) return report(cudaErrorInvalidValue);
  *blocks = 0;
  if (block_threads > 1024 || dynamic_shared_bytes > size_t(dynamic_limit(function))) return cudaSuccess;
  const int threads = (block_threads + 31) / 32 * 32;
  const size_t shared = (dynamic_shared_bytes + 127) / 128 * 128 + properties.reservedSharedMemPerBlock;
  *blocks = std::min({properties.maxThreadsPerMultiProcessor / threads, properties.maxBlocksPerMultiProcessor,
                      int(properties.sharedMemPerMultiprocessor / shared)});
  return report(sticky_error());
}
