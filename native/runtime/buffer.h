#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace nibblet {

class Device;

/// A zeroed allocation on a device, 64-byte aligned; large ones in huge pages where the system grants them. Freed with the
/// last reference: commands that use a buffer keep one, so memory never goes while an op can still touch it.
class Buffer {
 public:
  /// Throws OUT_OF_MEMORY when the system has less than `bytes` available.
  Buffer(std::shared_ptr<Device> device, size_t bytes);
  ~Buffer();
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  uint8_t* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  const std::shared_ptr<Device>& device() const { return device_; }

 private:
  std::shared_ptr<Device> device_;
  size_t bytes_;
  size_t mapped_;
  uint8_t* data_;
};

}  // namespace nibblet
