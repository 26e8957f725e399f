#pragma once

#include <mutex>
#include <string>

#include "test/emulator/include/launch.h"

/// What the parts of the emulated runtime share.
namespace nibblet::emulated {

/// Guards all registries; kernels run without it.
std::mutex& registry();

/// Keeps `error` as the last one of this host thread.
cudaError_t report(cudaError_t error);

/// The error that every call returns after a launch failed, or cudaSuccess.
cudaError_t sticky_error();
void set_sticky_error(cudaError_t error);

/// What the call of that name is to fail with at its start, or cudaSuccess (FailingCall).
cudaError_t injected_error(const char* call);

/// Whether the message was kept: without a FaultRecorder a fault aborts.
bool record_fault(const std::string& message);

/// cudaErrorStreamCaptureUnsupported where a capture forbids this thread an unsafe call, which invalidates it.
cudaError_t check_unsafe_call();

/// Runs `operation` now, or records it where `stream` captures.
cudaError_t enqueue(cudaStream_t stream, std::function<cudaError_t()> operation);

int current_device();
/// The emulated GPU of that number, or why there is none.
cudaError_t describe_device(cudaDeviceProp& properties, int device);

/// Runs a kernel that was checked.
void run(const Kernel& kernel);

void check_canaries();

}  // namespace nibblet::emulated
