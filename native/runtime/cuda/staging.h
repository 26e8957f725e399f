#pragma once

#include <array>
#include <memory>

#include "native/runtime/buffer.h"
#include "native/runtime/cuda/device.h"
#include "native/runtime/cuda/handle.h"
#include "native/runtime/cuda/pinned.h"

namespace nibblet {

/// The way of files to the GPU: page-locked memory that the host fills while the GPU still works on what came before, and as much
/// memory on the GPU. A few pieces in turn, each shared by as many regions as fit. Memory is taken at first use and given
/// back by release().
class CudaStaging {
 public:
  /// Bytes of one piece: the largest region.
  static constexpr size_t kPieceBytes = size_t{16} << 20;

  /// Bytes that exist twice. Both are good until the next take(), and for what was enqueued by then; kernels and copies that
  /// use a region have to be on the stream before another is taken.
  struct Region {
    uint8_t* host;
    uint8_t* device;
  };

  /// On the current device.
  CudaStaging(std::shared_ptr<CudaDevice> device, cudaStream_t stream);

  /// Bytes of the largest region that can be taken without ending the piece; 0 when there is none.
  size_t room() const { return kPieceBytes - used_; }
  /// A region of up to kPieceBytes bytes, 256-byte aligned. Where it does not fit the piece ends, and this waits while all
  /// pieces are under way.
  Region take(size_t bytes);
  /// Copies bytes of a region's host memory to memory of the GPU.
  void send(const uint8_t* from, size_t bytes, void* to);
  void release();

 private:
  struct Piece {
    PinnedMemory host;
    std::shared_ptr<Buffer> device;
    CudaEvent used{cudaEventDisableTiming | cudaEventBlockingSync};
  };

  void next();

  const std::shared_ptr<CudaDevice> device_;
  const cudaStream_t stream_;
  std::array<Piece, 3> pieces_;
  size_t turn_ = 0;
  size_t used_ = 0;  // of the piece whose turn it is
};

}  // namespace nibblet
