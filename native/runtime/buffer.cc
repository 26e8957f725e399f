#include "native/runtime/buffer.h"

#include <sys/mman.h>

#include <string>

#include "native/runtime/device.h"
#include "native/runtime/error.h"

namespace nibblet {
namespace {

constexpr size_t kPage = 4096;
constexpr size_t kHugePage = size_t{2} << 20;
// Below this, asking the system how much memory it has left costs more than it tells.
constexpr size_t kCheckedBytes = size_t{64} << 20;
// What 48-bit addresses leave a process.
constexpr size_t kAddressable = size_t{1} << 47;

}  // namespace

Buffer::Buffer(std::shared_ptr<Device> device, size_t bytes) : device_(std::move(device)), bytes_(bytes) {
  size_t granule = bytes >= kHugePage ? kHugePage : kPage;
  mapped_ = (bytes + granule - 1) / granule * granule;
  if (mapped_ == 0) mapped_ = kPage;
  if (bytes > kAddressable || (bytes >= kCheckedBytes && bytes > available_memory())) {
    throw Error("OUT_OF_MEMORY", "cannot allocate " + std::to_string(bytes) + " bytes: the system has " +
                                     std::to_string(available_memory()) +
                                     " available; free memory or lower contextLength");
  }
  void* mapping = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapping == MAP_FAILED) {
    throw Error("OUT_OF_MEMORY",
                "cannot allocate " + std::to_string(bytes) + " bytes; free memory or lower contextLength");
  }
  if (granule == kHugePage) madvise(mapping, mapped_, MADV_HUGEPAGE);
  data_ = static_cast<uint8_t*>(mapping);
  device_->account(static_cast<int64_t>(mapped_));
}

Buffer::~Buffer() {
  munmap(data_, mapped_);
  device_->account(-static_cast<int64_t>(mapped_));
}

}  // namespace nibblet
