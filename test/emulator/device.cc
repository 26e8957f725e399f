#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "test/emulator/control.h"
#include "test/emulator/internal.h"

namespace nibblet::emulated {

static void read_number(const char* name, auto& value, long long scale = 1) {
  if (const char* text = std::getenv(name))
    value = std::remove_reference_t<decltype(value)>(std::atoll(text) * scale);
}

Configuration& configuration() {
  static Configuration machine = [] {
    Configuration c;
    read_number("NIBBLET_EMULATED_DEVICES", c.devices);
    read_number("NIBBLET_EMULATED_MEMORY_MB", c.memory_bytes, 1 << 20);
    read_number("NIBBLET_EMULATED_MULTIPROCESSORS", c.multiprocessors);
    read_number("NIBBLET_EMULATED_CAPABILITY", c.capability);
    read_number("NIBBLET_EMULATED_DRIVER", c.driver);
    const char* order = std::getenv("NIBBLET_EMULATED_ORDER");
    c.reverse = order != nullptr && std::strcmp(order, "reverse") == 0;
    return c;
  }();
  return machine;
}

static thread_local int device_of_thread = 0;
int current_device() { return device_of_thread; }

static cudaError_t count_devices(int& count) {
  count = 0;
  if (configuration().driver < CUDART_VERSION / 1000 * 1000) return cudaErrorInsufficientDriver;
  if (configuration().devices == 0) return cudaErrorNoDevice;
  count = configuration().devices;
  return cudaSuccess;
}

/// What every call on a device finds first.
static cudaError_t check_device(int device) {
  int count;
  if (cudaError_t error = count_devices(count); error != cudaSuccess) return error;
  return device < 0 || device >= count ? cudaErrorInvalidDevice : cudaSuccess;
}

static size_t shared_per_multiprocessor() {
  const int capability = configuration().capability;
  const size_t kib = capability == 80 ? 164 : capability >= 90 && capability < 120 ? 228 : 100;
  return kib << 10;
}

cudaError_t describe_device(cudaDeviceProp& properties, int device) {
  if (cudaError_t error = check_device(device); error != cudaSuccess) return error;
  const Configuration& machine = configuration();
  cudaDeviceProp p{};
  std::snprintf(p.name, sizeof p.name, "emulated");
  std::memcpy(p.uuid.bytes, "emulated", 8);
  p.uuid.bytes[8] = char(device);
  p.totalGlobalMem = machine.memory_bytes;
  p.sharedMemPerBlock = size_t{48} << 10;
  p.regsPerBlock = 65536;
  p.warpSize = 32;
  p.maxThreadsPerBlock = 1024;
  p.maxThreadsDim[0] = p.maxThreadsDim[1] = 1024;
  p.maxThreadsDim[2] = 64;
  p.maxGridSize[0] = 0x7fffffff;
  p.maxGridSize[1] = p.maxGridSize[2] = 65535;
  p.totalConstMem = size_t{64} << 10;
  p.major = machine.capability / 10;
  p.minor = machine.capability % 10;
  p.multiProcessorCount = machine.multiprocessors;
  p.canMapHostMemory = 1;
  p.concurrentKernels = 1;
  p.pciBusID = device + 1;
  p.asyncEngineCount = 2;
  p.unifiedAddressing = 1;
  p.memoryBusWidth = 4096;
  p.l2CacheSize = 4 << 20;
  p.maxThreadsPerMultiProcessor = 2048;
  p.sharedMemPerMultiprocessor = shared_per_multiprocessor();
  p.regsPerMultiprocessor = 65536;
  p.sharedMemPerBlockOptin = shared_per_multiprocessor() - 1024;
  p.maxBlocksPerMultiProcessor = 32;
  p.reservedSharedMemPerBlock = 1024;
  properties = p;
  return cudaSuccess;
}

}  // namespace nibblet::emulated

using namespace nibblet::emulated;

cudaError_t cudaDriverGetVersion(int* version) {
  *version = configuration().driver;
  return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 0;
  if (cudaError_t error = injected_error(__func__); error != cudaSuccess) return report(error);
  return report(count_devices(*count));
}

cudaError_t cudaGetDevice(int* device) {
  *device = current_device();
  return report(check_device(*device));
}

cudaError_t cudaSetDevice(int device) {
  if (cudaError_t error = injected_error(__func__); error != cudaSuccess) return report(error);
  if (cudaError_t error = check_device(device); error != cudaSuccess) return report(error);
  device_of_thread = device;
  return report(sticky_error());
}

cudaError_t cudaInitDevice(int device, unsigned, unsigned) { return report(check_device(device)); }
cudaError_t cudaSetDeviceFlags(unsigned) { return report(check_device(current_device())); }

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  if (cudaError_t error = injected_error(__func__); error != cudaSuccess) return report(error);
  return report(describe_device(*properties, device));
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  cudaDeviceProp p;
  if (cudaError_t error = describe_device(p, device); error != cudaSuccess) return report(error);
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
      *value = p.maxThreadsPerBlock;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      *value = int(p.sharedMemPerBlock);
      break;
    case cudaDevAttrWarpSize:
      *value = p.warpSize;
      break;
    case cudaDevAttrClockRate:
      *value = 1'000'000;
      break;
    case cudaDevAttrMultiProcessorCount:
      *value = p.multiProcessorCount;
      break;
    case cudaDevAttrIntegrated:
      *value = p.integrated;
      break;
    case cudaDevAttrMemoryClockRate:
      *value = 1'000'000;
      break;
    case cudaDevAttrGlobalMemoryBusWidth:
      *value = p.memoryBusWidth;
      break;
    case cudaDevAttrL2CacheSize:
      *value = p.l2CacheSize;
      break;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      *value = p.maxThreadsPerMultiProcessor;
      break;
    case cudaDevAttrUnifiedAddressing:
      *value = p.unifiedAddressing;
      break;
    case cudaDevAttrComputeCapabilityMajor:
      *value = p.major;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *value = p.minor;
      break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = int(p.sharedMemPerMultiprocessor);
      break;
    case cudaDevAttrMaxRegistersPerMultiprocessor:
      *value = p.regsPerMultiprocessor;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = int(p.sharedMemPerBlockOptin);
      break;
    case cudaDevAttrMaxBlocksPerMultiprocessor:
      *value = p.maxBlocksPerMultiProcessor;
      break;
    default:
      return report(cudaErrorInvalidValue);
  }
  return cudaSuccess;
}

cudaError_t cudaDeviceGetPCIBusId(char* text, int bytes, int device) {
  if (cudaError_t error = check_device(device); error != cudaSuccess) return report(error);
  if (bytes < 13) return report(cudaErrorInvalidValue);
  std::snprintf(text, size_t(bytes), "0000:%02x:00.0", device + 1);
  return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize() {
  if (cudaError_t error = injected_error(__func__); error != cudaSuccess) return report(error);
  if (cudaError_t error = check_unsafe_call(); error != cudaSuccess) return report(error);
  return report(sticky_error());
}
