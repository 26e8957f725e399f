#pragma once

#include <atomic>
#include <memory>
#include <mutex>

#include "kernels/weight.h"
#include "native/runtime/buffer.h"

namespace nibblet {

/// An immutable packed weight: `matrices` matrices of [out, in] with one float32 scale a row, in one buffer.
/// Filled part by part by load_weight (load.h), then perhaps made smaller by compact_weight; in use, only ever read.
class Weight {
 public:
  Weight(std::shared_ptr<Device> device, Format format, Layout layout, int32_t matrices, int32_t out,
         int32_t in);

  WeightView view() const;
  /// The view for an op, after which the weight stays as it is. Throws INVALID_OPTION while it is being made compact.
  WeightView bind();
  std::shared_ptr<Buffer> buffer() const;
  uint8_t* matrix(int32_t index) const { return buffer_->data() + size_t(index) * matrix_bytes_; }
  float* row_scales(int32_t index) const;
  /// The host thread's, also while parts are being packed.
  void raise_input_scale(float scale) {
    if (scale > input_scale_.load(std::memory_order_relaxed))
      input_scale_.store(scale, std::memory_order_relaxed);
  }

  /// Throws INVALID_OPTION for a weight that has no compact form, that an op uses or that is or becomes compact.
  void begin_compact();
  /// On the engine thread, which alone reads the buffer meanwhile. @param buffer  what takes the place of the weight's:
  /// a compact matrix of so many bytes and the scales of its rows; null: everything stays as it is
  void end_compact(std::shared_ptr<Buffer> buffer, size_t matrix_bytes, uint64_t exceptions);
  /// Throws INVALID_OPTION unless parts can be loaded: the weight is plain, and is to stay so.
  void require_plain() const;
  /// Elements of a compact weight that are stored apart.
  uint64_t exceptions() const;

 private:
  WeightView locked_view() const;

  const int32_t matrices_;
  const int32_t out_;
  const int32_t in_;
  const Layout layout_;
  std::atomic<float> input_scale_{0};

  mutable std::mutex mutex_;
  Format format_;
  size_t matrix_bytes_;
  std::shared_ptr<Buffer> buffer_;
  bool bound_ = false, compacting_ = false;
  uint64_t exceptions_ = 0;
};

}  // namespace nibblet
