#pragma once

#include <array>
#include <memory>

#include "native/runtime/buffer.h"
#include "native/runtime/cuda/device.h"
#include "native/runtime/cuda/handle.h"
#include "native/runtime/cuda/pinned.h"

namespace nibblet {

/// Pieces of a file on their way to the GPU: page-locked memory that the host fills while the GPU still works on the pieces
/// before. Memory is taken at first use and given back by release().
class CudaStaging {
 public:
  /// Bytes of one piece.
  static constexpr size_t kPieceBytes = size_t{16} << 20;

  /// On the current device.
  CudaStaging(std::shared_ptr<CudaDevice> device, cudaStream_t stream);

  /// Memory of the host for the next piece of up to kPieceBytes. Waits when all pieces are under way.
  uint8_t* host();
  /// The same piece's memory on the GPU, for kernels.
  uint8_t* device();
  /// Copies bytes of host(), from `offset` on, to memory of the GPU.
  void send(size_t offset, size_t bytes, void* to);
  /// Ends the piece, after the kernels that read it were enqueued.
  void next();
  void release();

 private:
  struct Piece {
    PinnedMemory host;
    std::shared_ptr<Buffer> device;
    CudaEvent used{cudaEventDisableTiming | cudaEventBlockingSync};
  };

  const std::shared_ptr<CudaDevice> device_;
  const cudaStream_t stream_;
  std::array<Piece, 3> pieces_;
  size_t turn_ = 0;
};

}  // namespace nibblet
