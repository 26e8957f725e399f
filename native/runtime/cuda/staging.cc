#include "native/runtime/cuda/staging.h"

namespace nibblet {

CudaStaging::CudaStaging(std::shared_ptr<CudaDevice> device, cudaStream_t stream)
    : device_(std::move(device)), stream_(stream) {}

uint8_t* CudaStaging::host() {
  Piece& piece = pieces_[turn_];
  check_cuda(cudaEventSynchronize(piece.used.get()), "a copy to the GPU");
  if (piece.host.data() == nullptr) piece.host = PinnedMemory(kPieceBytes);
  return piece.host.data();
}

uint8_t* CudaStaging::device() {
  Piece& piece = pieces_[turn_];
  if (!piece.device) piece.device = std::make_shared<Buffer>(device_, kPieceBytes);
  return piece.device->data();
}

void CudaStaging::send(size_t offset, size_t bytes, void* to) {
  check_cuda(cudaMemcpyAsync(to, pieces_[turn_].host.data() + offset, bytes, cudaMemcpyHostToDevice, stream_),
             "a copy to the GPU");
}

void CudaStaging::next() {
  check_cuda(cudaEventRecord(pieces_[turn_].used.get(), stream_), "cudaEventRecord");
  turn_ = (turn_ + 1) % pieces_.size();
}

void CudaStaging::release() {
  for (Piece& piece : pieces_) {
    check_cuda(cudaEventSynchronize(piece.used.get()), "a copy to the GPU");
    piece.host = PinnedMemory();
    piece.device.reset();
  }
}

}  // namespace nibblet
