#include "native/runtime/cuda/staging.h"

#include <algorithm>

namespace nibblet {

CudaStaging::CudaStaging(std::shared_ptr<CudaDevice> device, cudaStream_t stream)
    : device_(std::move(device)), stream_(stream) {}

void CudaStaging::next() {
  const size_t after = (turn_ + 1) % pieces_.size();
  // Whatever fails here leaves everything as it was.
  check_cuda(cudaEventSynchronize(pieces_[after].used.get()), "a copy to the GPU");
  check_cuda(cudaEventRecord(pieces_[turn_].used.get(), stream_), "cudaEventRecord");
  turn_ = after;
  used_ = 0;
}

CudaStaging::Region CudaStaging::take(size_t bytes) {
  constexpr size_t kAlign = 256;
  if (bytes > kPieceBytes)
    throw Error("OP_FAILED", "a staged region of " + std::to_string(bytes) + " bytes is too large");
  if (bytes > room()) next();
  Piece& piece = pieces_[turn_];
  if (piece.host.data() == nullptr) piece.host = PinnedMemory(kPieceBytes);
  if (!piece.device) piece.device = std::make_shared<Buffer>(device_, kPieceBytes);
  const Region region{piece.host.data() + used_, piece.device->data() + used_};
  used_ = std::min(used_ + (bytes + kAlign - 1) / kAlign * kAlign, kPieceBytes);
  return region;
}

void CudaStaging::send(const uint8_t* from, size_t bytes, void* to) {
  check_cuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream_), "a copy to the GPU");
}

void CudaStaging::release() {
  check_cuda(cudaEventRecord(pieces_[turn_].used.get(), stream_), "cudaEventRecord");
  for (Piece& piece : pieces_) {
    check_cuda(cudaEventSynchronize(piece.used.get()), "a copy to the GPU");
    piece.host = PinnedMemory();
    piece.device.reset();
  }
  used_ = 0;
}

}  // namespace nibblet
