#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <mutex>

#include "kernels/weight.h"
#include "native/runtime/buffer.h"

namespace nibblet {

/// A packed weight: `matrices` matrices of [out, in] with one float32 scale a row, in one buffer. It changes until an op
/// binds it: filled part by part by load_weight (load.h), then perhaps moved to a smaller buffer by compact_weight. Ops only
/// ever read it.
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
  /// On the engine thread: throws INVALID_OPTION while parts are pending that `stream` was not given before.
  void require_loaded(const void* stream) const;
  /// On the engine thread, which alone reads the buffer meanwhile. @param buffer  what takes the place of the weight's:
  /// a compact matrix of so many bytes and the scales of its rows; null: everything stays as it is
  void end_compact(std::shared_ptr<Buffer> buffer, size_t matrix_bytes, uint64_t exceptions);
  /// A part is pending from its command's making to its end. Throws INVALID_OPTION unless the weight is plain, and is to
  /// stay so.
  void begin_part();
  /// On the engine thread, before stream `to` is given a pending part that `from` had (null: none). Throws
  /// INVALID_OPTION for a weight that was made compact.
  void start_part(const void* from, const void* to);
  void end_part(const void* stream) noexcept;
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
  std::map<const void*, int64_t> parts_;  // pending ones, by the stream that was given them; null: none yet
  uint64_t exceptions_ = 0;
};

}  // namespace nibblet
