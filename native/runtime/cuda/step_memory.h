#pragma once

#include <array>

#include "native/runtime/buffer.h"
#include "native/runtime/cuda/device.h"
#include "native/runtime/cuda/handle.h"
#include "native/runtime/cuda/pinned.h"
#include "native/runtime/step_input.h"

namespace nibblet {

/// The step of a stream in device memory, at an address that never changes, so that recorded kernels find it.
class StepMemory {
 public:
  /// On the current device.
  explicit StepMemory(std::shared_ptr<CudaDevice> device);

  const Step* step() const { return reinterpret_cast<const Step*>(memory_->data()); }
  /// Puts `input` there, after what was enqueued before. Waits only when kSlots uploads are still under way.
  void upload(const StepInput& input, cudaStream_t stream);
  /// A step of nothing.
  void clear(cudaStream_t stream);

 private:
  /// The host's copy of an upload under way.
  struct Slot {
    PinnedMemory host;
    CudaEvent copied{cudaEventDisableTiming};
  };
  Slot& next_slot(size_t bytes);

  const std::shared_ptr<CudaDevice> device_;
  std::shared_ptr<Buffer> memory_;
  /// For the words of a step that do not fit behind the Step.
  std::shared_ptr<Buffer> overflow_;
  std::array<Slot, 4> slots_;
  size_t turn_ = 0;
};

}  // namespace nibblet
