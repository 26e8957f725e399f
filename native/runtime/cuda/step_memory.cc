#include "native/runtime/cuda/step_memory.h"

#include <algorithm>
#include <cstring>

namespace nibblet {
namespace {

constexpr size_t kHeaderBytes = 256;
static_assert(sizeof(Step) <= kHeaderBytes);
/// Enough for 64 sequences of 100,000 tokens and a chunk of prompt.
constexpr size_t kWordBytes = size_t{1} << 20;

}  // namespace

StepMemory::StepMemory(std::shared_ptr<CudaDevice> device)
    : device_(std::move(device)), memory_(std::make_shared<Buffer>(device_, kHeaderBytes + kWordBytes)) {}

StepMemory::Slot& StepMemory::next_slot(size_t bytes) {
  Slot& slot = slots_[turn_++ % slots_.size()];
  check_cuda(cudaEventSynchronize(slot.copied.get()), "the copy of a step");
  if (slot.host.bytes() < bytes) slot.host = PinnedMemory(std::max(bytes, size_t{64} << 10));
  return slot;
}

void StepMemory::upload(const StepInput& input, cudaStream_t stream) {
  const size_t bytes = input.words().size() * sizeof(int32_t);
  Slot& slot = next_slot(kHeaderBytes + bytes);
  uint8_t* words = memory_->data() + kHeaderBytes;
  if (bytes > kWordBytes) {
    // What an earlier step's kernels still read must stay where it is.
    if (!overflow_ || overflow_->bytes() < bytes) {
      check_cuda(cudaStreamSynchronize(stream), "a larger step");
      overflow_ = std::make_shared<Buffer>(device_, 2 * bytes);
    }
    words = overflow_->data();
  }
  const Step step = input.step_at(reinterpret_cast<const int32_t*>(words));
  std::memcpy(slot.host.data(), &step, sizeof step);
  std::memcpy(slot.host.data() + kHeaderBytes, input.words().data(), bytes);
  const auto copy = [&](void* to, const void* from, size_t count) {
    check_cuda(cudaMemcpyAsync(to, from, count, cudaMemcpyHostToDevice, stream), "the copy of a step");
  };
  if (bytes > kWordBytes) {
    copy(memory_->data(), slot.host.data(), sizeof step);
    copy(words, slot.host.data() + kHeaderBytes, bytes);
  } else {
    copy(memory_->data(), slot.host.data(), kHeaderBytes + bytes);
  }
  check_cuda(cudaEventRecord(slot.copied.get(), stream), "cudaEventRecord");
}

void StepMemory::clear(cudaStream_t stream) {
  check_cuda(cudaMemsetAsync(memory_->data(), 0, kHeaderBytes, stream), "an empty step");
}

}  // namespace nibblet
