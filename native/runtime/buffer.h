#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "native/runtime/device.h"

namespace nibblet {

/// A zeroed allocation on a device, at least 64-byte aligned. Freed with the last reference: commands that use a buffer keep
/// one, so memory never goes while an op can still touch it.
class Buffer {
 public:
  /// Throws OUT_OF_MEMORY when the device has less than `bytes` available.
  Buffer(std::shared_ptr<Device> device, size_t bytes)
      : device_(std::move(device)), bytes_(bytes), allocation_(device_->allocate(bytes)) {}
  ~Buffer() { device_->release(allocation_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  /// Memory of the device: on a GPU the host cannot read it.
  uint8_t* data() const { return allocation_.data; }
  size_t bytes() const { return bytes_; }
  const std::shared_ptr<Device>& device() const { return device_; }

 private:
  std::shared_ptr<Device> device_;
  size_t bytes_;
  Device::Allocation allocation_;
};

}  // namespace nibblet
