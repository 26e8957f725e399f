#pragma once

#include <optional>

#include "kernels/cuda/launch.h"
#include "native/runtime/cuda/handle.h"
#include "native/runtime/device.h"

namespace nibblet {

/// A GPU.
class CudaDevice : public Device {
 public:
  /// Throws NO_DEVICE when there is no such GPU, no driver, or no machine code for it in this build; what cuda_error says
  /// of a GPU that fails otherwise.
  CudaDevice(const std::string& name, int index);

  std::string model() const override { return model_; }
  void write(void* to, const void* from, size_t bytes) override;
  size_t available_bytes() const override;
  std::unique_ptr<Executor> executor(int threads) override;
  /// Its stream is the device's own, for work outside of any Stream.
  const CudaTarget* cuda() const override { return &target_; }

  /// Makes this device the calling thread's.
  void activate() const;
  void try_activate() const noexcept;

 protected:
  Allocation take(size_t bytes) override;
  void give(const Allocation& allocation) override;
  void begin_thread() override { try_activate(); }

 private:
  const int index_;
  std::string model_;
  std::optional<CudaStream> stream_;
  CudaTarget target_{};
};

/// 0 without a driver that fits.
int count_cuda_devices();
/// `cuda:N`
std::shared_ptr<Device> open_cuda_device(const std::string& name);

}  // namespace nibblet
