#include <cstdio>
#include <cstdlib>
#include <list>

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

#define NIBBLET_EMULATED_ERRORS(entry)                                                                       \
  entry(cudaSuccess, "no error") entry(cudaErrorInvalidValue, "invalid argument") entry(                     \
      cudaErrorMemoryAllocation, "out of memory") entry(cudaErrorInitializationError,                        \
                                                        "initialization error")                              \
      entry(cudaErrorInvalidConfiguration, "invalid configuration argument") entry(                          \
          cudaErrorInvalidMemcpyDirection,                                                                   \
          "invalid copy direction for memcpy") entry(cudaErrorInsufficientDriver,                            \
                                                     "CUDA driver version is insufficient for CUDA runtime " \
                                                     "version") entry(cudaErrorInvalidDeviceFunction,        \
                                                                      "invalid device function")             \
          entry(cudaErrorNoDevice, "no CUDA-capable device is detected") entry(                              \
              cudaErrorInvalidDevice,                                                                        \
              "invalid device ordinal") entry(cudaErrorNoKernelImageForDevice,                               \
                                              "no kernel image is available for execution on the device")    \
              entry(cudaErrorInvalidResourceHandle, "invalid resource handle") entry(                        \
                  cudaErrorNotReady, "device not ready") entry(cudaErrorIllegalAddress,                      \
                                                               "an illegal memory access was encountered")   \
                  entry(cudaErrorLaunchOutOfResources, "too many resources requested for launch") entry(     \
                      cudaErrorHostMemoryAlreadyRegistered,                                                  \
                      "part or all of the requested memory range is already mapped")                         \
                      entry(cudaErrorHostMemoryNotRegistered,                                                \
                            "pointer does not correspond to a registered memory region")                     \
                          entry(cudaErrorLaunchFailure, "unspecified launch failure") entry(                 \
                              cudaErrorNotPermitted, "operation not permitted")                              \
                              entry(cudaErrorNotSupported, "operation not supported") entry(                 \
                                  cudaErrorStreamCaptureUnsupported,                                         \
                                  "operation not permitted when stream is capturing")                        \
                                  entry(cudaErrorStreamCaptureInvalidated,                                   \
                                        "operation failed due to a previous error during capture")           \
                                      entry(cudaErrorStreamCaptureUnmatched,                                 \
                                            "capture was not initiated in this stream")                      \
                                          entry(cudaErrorStreamCaptureUnjoined,                              \
                                                "capturing stream has unjoined work")                        \
                                              entry(                                                         \
                                                  cudaErrorStreamCaptureImplicit,                            \
                                                  "operation would make the legacy stream depend on a "      \
                                                  "capturing blocking stream") entry(cudaErrorCapturedEvent, \
                                                                                     "operation not "        \
                                                                                     "permitted on an "      \
                                                                                     "event last recorded "  \
                                                                                     "in a capturing "       \
                                                                                     "stream")               \
                                                  entry(cudaErrorStreamCaptureWrongThread,                   \
                                                        "attempt to terminate a thread-local capture "       \
                                                        "sequence from another thread")                      \
                                                      entry(cudaErrorDevicesUnavailable,                     \
                                                            "CUDA-capable device(s) is/are busy or "         \
                                                            "unavailable") entry(cudaErrorECCUncorrectable,  \
                                                                                 "uncorrectable ECC error "  \
                                                                                 "encountered")              \
                                                          entry(cudaErrorAssert,                             \
                                                                "device-side assert triggered")              \
                                                              entry(                                         \
                                                                  cudaErrorIllegalInstruction,               \
                                                                  "an illegal instruction was encountered")  \
                                                                  entry(cudaErrorMisalignedAddress,          \
                                                                        "misaligned address")                \
                                                                      entry(cudaErrorSystemDriverMismatch,   \
                                                                            "system has unsupported "        \
                                                                            "display driver / cuda driver "  \
                                                                            "combination")                   \
                                                                          entry(cudaErrorUnknown,            \
                                                                                "unknown error")

const char* cudaGetErrorName(cudaError_t error) {
#define NIBBLET_EMULATED_NAME(name, text) \
  if (error == name) return #name;
  NIBBLET_EMULATED_ERRORS(NIBBLET_EMULATED_NAME)
  return "unrecognized error code";
}

const char* cudaGetErrorString(cudaError_t error) {
#define NIBBLET_EMULATED_TEXT(name, text) \
  if (error == name) return text;
  NIBBLET_EMULATED_ERRORS(NIBBLET_EMULATED_TEXT)
  return "unrecognized error code";
}
