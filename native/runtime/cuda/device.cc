#include "native/runtime/cuda/device.h"

#include <charconv>

#include "kernels/cuda/probe.h"
#include "native/runtime/cuda/error.h"
#include "native/runtime/cuda/executor.h"

namespace nibblet {
namespace {

Error no_device(const std::string& message) { return Error("NO_DEVICE", message); }

void check_driver(const std::string& name) {
  int driver = 0, runtime = 0;
  cudaDriverGetVersion(&driver);
  cudaRuntimeGetVersion(&runtime);
  const auto version = [](int number) {
    return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10);
  };
  if (driver == 0) {
    throw no_device("device '" + name +
                    "' is not there: this machine has no NVIDIA driver; install one, or use 'cpu'");
  }
  if (driver < runtime / 1000 * 1000) {
    throw no_device("device '" + name + "' cannot be used: the NVIDIA driver supports CUDA " +
                    version(driver) + " and this build needs " + version(runtime) +
                    "; update the driver, or use 'cpu'");
  }
}

bool lacks_machine_code(cudaError_t error) {
  switch (error) {
    case cudaErrorInvalidDeviceFunction:
    case cudaErrorInvalidKernelImage:
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorInvalidPtx:
    case cudaErrorUnsupportedPtxVersion:
    case cudaErrorJitCompilerNotFound:
    case cudaErrorJitCompilationDisabled:
      return true;
    default:
      return false;
  }
}

}  // namespace

CudaDevice::CudaDevice(const std::string& name, int index) : Device(name), index_(index) {
  check_driver(name);
  int count = 0;
  cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaErrorNoDevice) count = 0;
  if (error != cudaSuccess && error != cudaErrorNoDevice) throw cuda_error(error, "device '" + name + "'");
  if (index >= count) {
    cudaGetLastError();
    throw no_device("device '" + name + "' is not there: this machine shows " + std::to_string(count) +
                    (count == 1 ? " GPU" : " GPUs") + "; use 'cpu', or look at CUDA_VISIBLE_DEVICES");
  }
  cudaDeviceProp properties{};
  check_cuda(cudaGetDeviceProperties(&properties, index), "cudaGetDeviceProperties");
  model_ = properties.name;
  activate();
  error = probe_kernels();
  if (lacks_machine_code(error)) {
    cudaGetLastError();
    throw no_device("device '" + name + "', " + model_ + ", has architecture sm_" +
                    std::to_string(properties.major) + std::to_string(properties.minor) +
                    " and this build holds machine code for " NIBBLET_CUDA_ARCHS " (" +
                    cudaGetErrorString(error) + "); build with NIBBLET_CUDA_ARCHS for it, or use 'cpu'");
  }
  check_cuda(error, "a look at the kernels");
  target_.multiprocessors = properties.multiProcessorCount;
  target_.capability = properties.major * 10 + properties.minor;
  target_.shared_bytes = properties.sharedMemPerBlockOptin;
  target_.programmatic_edges = target_.capability >= 90;
  target_.stream = stream_.emplace().get();
}

void CudaDevice::activate() const { check_cuda(cudaSetDevice(index_), "cudaSetDevice"); }

void CudaDevice::try_activate() const noexcept {
  cudaSetDevice(index_);
  cudaGetLastError();
}

void CudaDevice::write(void* to, const void* from, size_t bytes) {
  activate();
  check_cuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, target_.stream), "copy to the GPU");
  check_cuda(cudaStreamSynchronize(target_.stream), "copy to the GPU");
}

size_t CudaDevice::available_bytes() const {
  activate();
  size_t available = 0, total = 0;
  check_cuda(cudaMemGetInfo(&available, &total), "cudaMemGetInfo");
  return available;
}

std::unique_ptr<Executor> CudaDevice::executor(int threads) {
  return std::make_unique<CudaExecutor>(std::static_pointer_cast<CudaDevice>(shared_from_this()), threads);
}

Device::Allocation CudaDevice::take(size_t bytes) {
  constexpr size_t kGranule = 512;
  const size_t whole = bytes == 0 ? kGranule : (bytes + kGranule - 1) / kGranule * kGranule;
  activate();
  void* data = nullptr;
  cudaError_t error = cudaMalloc(&data, whole);
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    throw Error("OUT_OF_MEMORY", "cannot allocate " + std::to_string(bytes) + " bytes on '" + name() +
                                     "': it has " + std::to_string(available_bytes()) +
                                     " available; free memory on the GPU or lower contextLength or maxBatch");
  }
  check_cuda(error, "cudaMalloc");
  error = cudaMemsetAsync(data, 0, whole, target_.stream);
  if (error == cudaSuccess) error = cudaStreamSynchronize(target_.stream);
  if (error != cudaSuccess) cudaFree(data);
  check_cuda(error, "cudaMemset");
  return {static_cast<uint8_t*>(data), whole};
}

void CudaDevice::give(const Allocation& allocation) {
  // The last holder of a buffer may be a thread of another GPU.
  int previous = index_;
  cudaGetDevice(&previous);
  // At the end of a process the driver may be gone before the last buffer: there is nothing left to free then.
  if (cudaSetDevice(index_) == cudaSuccess) cudaFree(allocation.data);
  cudaSetDevice(previous);
  cudaGetLastError();
}

int count_cuda_devices() {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  cudaGetLastError();
  return 0;
}

std::shared_ptr<Device> open_cuda_device(const std::string& name) {
  constexpr std::string_view kPrefix = "cuda:";
  int index = -1;
  if (name.starts_with(kPrefix)) {
    const char* end = name.data() + name.size();
    const auto parsed = std::from_chars(name.data() + kPrefix.size(), end, index);
    if (parsed.ec != std::errc() || parsed.ptr != end) index = -1;
  }
  if (index < 0) throw no_device("there is no device '" + name + "'; use 'cpu' or 'cuda:N'");
  return std::make_shared<CudaDevice>(name, index);
}

}  // namespace nibblet
