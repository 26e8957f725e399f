#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "test/emulator/include/runtime_api.h"

/// What tests of the emulator and of the CUDA runtime ask of the emulator beyond CUDA.
namespace nibblet::emulated {

/// The machine that is emulated. From the environment: NIBBLET_EMULATED_DEVICES, _MEMORY_MB, _MULTIPROCESSORS,
/// _CAPABILITY (90 is sm_90), _DRIVER (13000 is 13.0; 0: no driver) and _ORDER.
struct Configuration {
  int devices = 1;
  size_t memory_bytes = size_t{1} << 30;  ///< of each device
  int multiprocessors = 4;
  int capability = 90;
  int driver = 13000;
  /// The last ready thread of a block runs first, and the last block. What works one way only lacks a barrier.
  bool reverse = false;
};
Configuration& configuration();

/// Device memory in use, on all devices together.
size_t allocated_bytes();
/// Pinned host memory in use.
size_t pinned_bytes();
/// Streams, events, graphs and executable graphs that exist.
size_t live_handles();
/// Kernels run since the process started, those of graphs included.
size_t launched_kernels();

/// While one lives a fault no longer aborts: it poisons the device as a failed launch does, until cudaDeviceReset.
class FaultRecorder {
 public:
  FaultRecorder();
  ~FaultRecorder();
  FaultRecorder(const FaultRecorder&) = delete;
  /// The message of every fault since.
  std::vector<std::string> messages() const;
};

/// While it lives, one CUDA call of the process fails with `error` and does nothing: number `number`, from 0, of those that
/// enqueue, wait or make something, or only of those of the name given.
class FailingCall {
 public:
  explicit FailingCall(cudaError_t error, int number = 0, std::string name = "");
  ~FailingCall();
  FailingCall(const FailingCall&) = delete;
  /// The name of the call that failed; empty: none has, so far.
  std::string failed() const;
};

}  // namespace nibblet::emulated
