#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/launch.h"
#include "native/runtime/command.h"
#include "native/runtime/cuda/device.h"
#include "native/runtime/cuda/error.h"
#include "native/runtime/stream.h"

namespace nibblet {

class CudaStaging;

/// What a command sees when it is enqueued on a GPU.
struct CudaExecution {
  const CudaTarget& target;
  const Step* step;      ///< device memory, at the same address for every step
  CudaStaging* staging;  ///< null while a graph is recorded
  const Execution& host;
  const std::shared_ptr<CudaDevice>& device;
};

/// The memory that an op has beside its operands.
class CudaScratchBuffers {
 public:
  CudaScratchBuffers() = default;
  CudaScratchBuffers(Stream& stream, const CudaScratch& sizes) {
    if (sizes.workspace > 0) workspace_ = stream.workspace(sizes.workspace);
    if (sizes.counters > 0) counters_ = std::make_shared<Buffer>(stream.device(), sizes.counters);
  }
  void* workspace() const { return workspace_ ? workspace_->data() : nullptr; }
  void* counters() const { return counters_ ? counters_->data() : nullptr; }

 private:
  std::shared_ptr<Buffer> workspace_, counters_;
};

}  // namespace nibblet
