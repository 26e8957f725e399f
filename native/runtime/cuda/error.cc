#include "native/runtime/cuda/error.h"

namespace nibblet {

Error cuda_error(cudaError_t code, const std::string& what) {
  // Takes it off the thread's record, where the next check of another call would find it.
  cudaGetLastError();
  const std::string text = what + ": " + cudaGetErrorString(code) + " (" + cudaGetErrorName(code) + ")";
  switch (code) {
    case cudaErrorMemoryAllocation:
      return Error("OUT_OF_MEMORY", text + "; free memory on the GPU or lower contextLength or maxBatch");
    case cudaErrorNoDevice:
    case cudaErrorInsufficientDriver:
    case cudaErrorInvalidDevice:
    case cudaErrorSystemDriverMismatch:
    case cudaErrorDevicesUnavailable:
      return Error("NO_DEVICE", text);
    // Every later call on the GPU fails with the same.
    case cudaErrorECCUncorrectable:
    case cudaErrorNvlinkUncorrectable:
    case cudaErrorContained:
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchTimeout:
    case cudaErrorContextIsDestroyed:
    case cudaErrorAssert:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorLaunchFailure:
    case cudaErrorTensorMemoryLeak:
    case cudaErrorExternalDevice:
      return Error("STREAM_FAILED",
                   text + "; the GPU cannot be used again by this process: start another one");
    default:
      return Error("STREAM_FAILED", text);
  }
}

}  // namespace nibblet
