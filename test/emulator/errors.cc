#include "test/emulator/control.h"
#include "test/emulator/internal.h"

namespace nibblet::emulated {

std::mutex& registry() {
  static std::mutex mutex;
  return mutex;
}

static thread_local cudaError_t last_error = cudaSuccess;
static cudaError_t sticky = cudaSuccess;
static std::mutex faults_mutex;
static int recorders = 0;
static std::vector<std::string> faults;

cudaError_t report(cudaError_t error) {
  if (error != cudaSuccess && error != cudaErrorNotReady) last_error = error;
  return error;
}

cudaError_t sticky_error() {
  std::lock_guard lock(faults_mutex);
  return sticky;
}

void set_sticky_error(cudaError_t error) {
  std::lock_guard lock(faults_mutex);
  sticky = error;
}

bool record_fault(const std::string& message) {
  std::lock_guard lock(faults_mutex);
  if (recorders == 0) return false;
  faults.push_back(message);
  return true;
}

FaultRecorder::FaultRecorder() {
  std::lock_guard lock(faults_mutex);
  if (recorders++ == 0) faults.clear();
}

FaultRecorder::~FaultRecorder() {
  std::lock_guard lock(faults_mutex);
  --recorders;
}

std::vector<std::string> FaultRecorder::messages() const {
  std::lock_guard lock(faults_mutex);
  return faults;
}

namespace {

/// The call that is to fail, while there is a FailingCall.
struct Injection {
  std::mutex mutex;
  bool armed = false;
  cudaError_t error = cudaSuccess;
  int left = 0;
  std::string name, failed;
};
Injection injection;

}  // namespace

cudaError_t injected_error(const char* call) {
  std::lock_guard lock(injection.mutex);
  if (!injection.armed || !injection.failed.empty()) return cudaSuccess;
  if (!injection.name.empty() && injection.name != call) return cudaSuccess;
  if (injection.left-- > 0) return cudaSuccess;
  injection.failed = call;
  return injection.error;
}

FailingCall::FailingCall(cudaError_t error, int number, std::string name) {
  std::lock_guard lock(injection.mutex);
  injection.armed = true;
  injection.error = error;
  injection.left = number;
  injection.name = std::move(name);
  injection.failed.clear();
}

FailingCall::~FailingCall() {
  std::lock_guard lock(injection.mutex);
  injection.armed = false;
}

std::string FailingCall::failed() const {
  std::lock_guard lock(injection.mutex);
  return injection.failed;
}

}  // namespace nibblet::emulated

using namespace nibblet::emulated;

cudaError_t cudaPeekAtLastError() {
  const cudaError_t error = sticky_error();
  return error != cudaSuccess ? error : last_error;
}

cudaError_t cudaGetLastError() {
  const cudaError_t error = cudaPeekAtLastError();
  last_error = cudaSuccess;
  return error;
}

namespace {

struct ErrorText {
  cudaError_t error;
  const char *name, *text;
};

#define NIBBLET_ERROR(error, text) {error, #error, text}
constexpr ErrorText error_texts[] = {
    NIBBLET_ERROR(cudaSuccess, "no error"),
    NIBBLET_ERROR(cudaErrorInvalidValue, "invalid argument"),
    NIBBLET_ERROR(cudaErrorMemoryAllocation, "out of memory"),
    NIBBLET_ERROR(cudaErrorInitializationError, "initialization error"),
    NIBBLET_ERROR(cudaErrorInvalidConfiguration, "invalid configuration argument"),
    NIBBLET_ERROR(cudaErrorInvalidMemcpyDirection, "invalid copy direction for memcpy"),
    NIBBLET_ERROR(cudaErrorInsufficientDriver,
                  "CUDA driver version is insufficient for CUDA runtime version"),
    NIBBLET_ERROR(cudaErrorDevicesUnavailable, "CUDA-capable device(s) is/are busy or unavailable"),
    NIBBLET_ERROR(cudaErrorInvalidDeviceFunction, "invalid device function"),
    NIBBLET_ERROR(cudaErrorNoDevice, "no CUDA-capable device is detected"),
    NIBBLET_ERROR(cudaErrorInvalidDevice, "invalid device ordinal"),
    NIBBLET_ERROR(cudaErrorInvalidKernelImage, "device kernel image is invalid"),
    NIBBLET_ERROR(cudaErrorNoKernelImageForDevice,
                  "no kernel image is available for execution on the device"),
    NIBBLET_ERROR(cudaErrorECCUncorrectable, "uncorrectable ECC error encountered"),
    NIBBLET_ERROR(cudaErrorInvalidPtx, "a PTX JIT compilation failed"),
    NIBBLET_ERROR(cudaErrorNvlinkUncorrectable, "uncorrectable NVLink error"),
    NIBBLET_ERROR(cudaErrorJitCompilerNotFound, "PTX JIT compiler library not found"),
    NIBBLET_ERROR(cudaErrorUnsupportedPtxVersion, "unsupported PTX version"),
    NIBBLET_ERROR(cudaErrorJitCompilationDisabled, "PTX JIT compilation was disabled"),
    NIBBLET_ERROR(cudaErrorContained, "contained memory error"),
    NIBBLET_ERROR(cudaErrorInvalidResourceHandle, "invalid resource handle"),
    NIBBLET_ERROR(cudaErrorNotReady, "device not ready"),
    NIBBLET_ERROR(cudaErrorIllegalAddress, "an illegal memory access was encountered"),
    NIBBLET_ERROR(cudaErrorLaunchOutOfResources, "too many resources requested for launch"),
    NIBBLET_ERROR(cudaErrorLaunchTimeout, "the launch timed out and was terminated"),
    NIBBLET_ERROR(cudaErrorContextIsDestroyed, "context is destroyed"),
    NIBBLET_ERROR(cudaErrorAssert, "device-side assert triggered"),
    NIBBLET_ERROR(cudaErrorHostMemoryAlreadyRegistered,
                  "part or all of the requested memory range is already mapped"),
    NIBBLET_ERROR(cudaErrorHostMemoryNotRegistered,
                  "pointer does not correspond to a registered memory region"),
    NIBBLET_ERROR(cudaErrorHardwareStackError, "hardware stack error"),
    NIBBLET_ERROR(cudaErrorIllegalInstruction, "an illegal instruction was encountered"),
    NIBBLET_ERROR(cudaErrorMisalignedAddress, "misaligned address"),
    NIBBLET_ERROR(cudaErrorInvalidAddressSpace, "invalid address space"),
    NIBBLET_ERROR(cudaErrorInvalidPc, "invalid program counter"),
    NIBBLET_ERROR(cudaErrorLaunchFailure, "unspecified launch failure"),
    NIBBLET_ERROR(cudaErrorTensorMemoryLeak, "tensor memory was not freed"),
    NIBBLET_ERROR(cudaErrorNotPermitted, "operation not permitted"),
    NIBBLET_ERROR(cudaErrorNotSupported, "operation not supported"),
    NIBBLET_ERROR(cudaErrorSystemDriverMismatch,
                  "system has unsupported display driver / cuda driver combination"),
    NIBBLET_ERROR(cudaErrorStreamCaptureUnsupported, "operation not permitted when stream is capturing"),
    NIBBLET_ERROR(cudaErrorStreamCaptureInvalidated,
                  "operation failed due to a previous error during capture"),
    NIBBLET_ERROR(cudaErrorStreamCaptureUnmatched, "capture was not initiated in this stream"),
    NIBBLET_ERROR(cudaErrorStreamCaptureUnjoined, "capturing stream has unjoined work"),
    NIBBLET_ERROR(cudaErrorStreamCaptureImplicit,
                  "operation would make the legacy stream depend on a capturing blocking stream"),
    NIBBLET_ERROR(cudaErrorCapturedEvent,
                  "operation not permitted on an event last recorded in a capturing stream"),
    NIBBLET_ERROR(cudaErrorStreamCaptureWrongThread,
                  "attempt to terminate a thread-local capture sequence from another thread"),
    NIBBLET_ERROR(cudaErrorExternalDevice, "error in an external device"),
    NIBBLET_ERROR(cudaErrorUnknown, "unknown error"),
};
#undef NIBBLET_ERROR

}  // namespace

const char* cudaGetErrorName(cudaError_t error) {
  for (const ErrorText& known : error_texts)
    if (known.error == error) return known.name;
  return "unrecognized error code";
}

const char* cudaGetErrorString(cudaError_t error) {
  for (const ErrorText& known : error_texts)
    if (known.error == error) return known.text;
  return "unrecognized error code";
}
