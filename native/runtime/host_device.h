#pragma once

#include "native/runtime/device.h"

namespace nibblet {

/// The host CPU.
class HostDevice : public Device {
 public:
  using Device::Device;
  std::string model() const override;
  void write(void* to, const void* from, size_t bytes) override;
  size_t available_bytes() const override;
  std::unique_ptr<Executor> executor(int threads) override;

 protected:
  Allocation take(size_t bytes) override;
  void give(const Allocation& allocation) override;
};

}  // namespace nibblet
