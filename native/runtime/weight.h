#pragma once

#include <atomic>
#include <memory>

#include "kernels/weight.h"
#include "native/runtime/buffer.h"

namespace nibblet {

/// An immutable packed weight: `matrices` matrices of [out, in] with one float32 scale a row, in one buffer.
/// Filled part by part by load_weight (load.h); in use, only ever read.
class Weight {
 public:
  Weight(std::shared_ptr<Device> device, Format format, Layout layout, int32_t matrices, int32_t out,
         int32_t in);

  WeightView view() const;
  const std::shared_ptr<Buffer>& buffer() const { return buffer_; }
  uint8_t* matrix(int32_t index) const { return buffer_->data() + size_t(index) * matrix_bytes_; }
  float* row_scales(int32_t index) const;
  /// The host thread's, also while parts are being packed.
  void raise_input_scale(float scale) {
    if (scale > input_scale_.load(std::memory_order_relaxed))
      input_scale_.store(scale, std::memory_order_relaxed);
  }

 private:
  Format format_;
  Layout layout_;
  int32_t matrices_;
  int32_t out_;
  int32_t in_;
  size_t matrix_bytes_;
  std::atomic<float> input_scale_{0};
  std::shared_ptr<Buffer> buffer_;
};

}  // namespace nibblet
