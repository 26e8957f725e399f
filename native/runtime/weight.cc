#include "native/runtime/weight.h"

#include <string>
#include <vector>

#include "kernels/pack/pack.h"
#include "native/runtime/error.h"

namespace nibblet {

Weight::Weight(std::shared_ptr<Device> device, Format format, Layout layout, int32_t matrices, int32_t out,
               int32_t in)
    : matrices_(matrices), out_(out), in_(in), layout_(layout), format_(format) {
  if (matrices < 1 || out < 1 || in < 1) {
    throw invalid("a weight needs at least one matrix, row and column, got " + std::to_string(matrices) +
                  " of [" + std::to_string(out) + ", " + std::to_string(in) + "]");
  }
  if (format == Format::nvfp4 && in % kBlockInputs != 0) {
    throw invalid("an nvfp4 weight needs inputs in blocks of 16, got " + std::to_string(in));
  }
  if (layout == Layout::columns && format != Format::nvfp4) {
    throw invalid("only an nvfp4 weight can be laid out in columns");
  }
  if (format == Format::compact_bf16) throw invalid("a compact weight is made of a bf16 one that was loaded");
  const bool on_gpu = device->cuda() != nullptr;
  if (on_gpu ? layout == Layout::panels : layout == Layout::fragments) {
    throw invalid(std::string("device '") + device->name() + "' has no kernels for weights laid out in " +
                  (on_gpu ? "panels: use fragments" : "fragments: use panels"));
  }
  if (layout == Layout::fragments && format == Format::f32)
    throw invalid("an f32 weight cannot be laid out in fragments: use rows");
  // At most four bytes an element and four more a row: below this, no size overflows.
  if (double(matrices) * out * (4.0 * in + 4) > 0x1p50) {
    throw Error("OUT_OF_MEMORY", "cannot allocate " + std::to_string(matrices) + " matrices of [" +
                                     std::to_string(out) + ", " + std::to_string(in) +
                                     "]; no machine has the memory");
  }
  matrix_bytes_ = packed_matrix_bytes(format, layout, out, in);
  size_t scale_bytes = size_t(matrices) * size_t(out) * sizeof(float);
  buffer_ = std::make_shared<Buffer>(std::move(device), size_t(matrices) * matrix_bytes_ + scale_bytes);
  const std::vector<float> ones(size_t(matrices) * size_t(out), 1.0f);
  buffer_->device()->write(row_scales(0), ones.data(), scale_bytes);
}

float* Weight::row_scales(int32_t index) const {
  return reinterpret_cast<float*>(buffer_->data() + size_t(matrices_) * matrix_bytes_) +
         size_t(index) * size_t(out_);
}

WeightView Weight::locked_view() const {
  return {format_,       layout_,       matrices_,
          out_,          in_,           buffer_->data(),
          matrix_bytes_, row_scales(0), input_scale_.load(std::memory_order_relaxed)};
}

WeightView Weight::view() const {
  std::lock_guard lock(mutex_);
  return locked_view();
}

WeightView Weight::bind() {
  std::lock_guard lock(mutex_);
  if (compacting_) throw invalid("the weight is being made compact: await stream.sync() before using it");
  bound_ = true;
  return locked_view();
}

std::shared_ptr<Buffer> Weight::buffer() const {
  std::lock_guard lock(mutex_);
  return buffer_;
}

uint64_t Weight::exceptions() const {
  std::lock_guard lock(mutex_);
  return exceptions_;
}

void Weight::begin_part() {
  std::lock_guard lock(mutex_);
  if (compacting_ || format_ == Format::compact_bf16)
    throw invalid("the weight is complete and compact: parts are loaded before that");
  ++parts_[nullptr];
}

void Weight::start_part(const void* from, const void* to) {
  std::lock_guard lock(mutex_);
  // That it is about to become so is no obstacle: this stream then has the part first.
  if (format_ == Format::compact_bf16) throw invalid("the weight is compact already: load parts before that");
  ++parts_[to];
  --parts_[from];
}

void Weight::end_part(const void* stream) noexcept {
  std::lock_guard lock(mutex_);
  --parts_[stream];
}

void Weight::require_loaded(const void* stream) const {
  std::lock_guard lock(mutex_);
  for (const auto& [given, parts] : parts_) {
    if (given != stream && parts > 0) {
      throw invalid(
          "parts of the weight are still to be loaded, or by another stream: await that stream's sync() "
          "before it is made compact");
    }
  }
}

void Weight::begin_compact() {
  std::lock_guard lock(mutex_);
  const bool fits = layout_ == Layout::fragments || layout_ == Layout::panels;
  if (format_ != Format::bf16 || !fits || matrices_ != 1)
    throw invalid("only a single bf16 matrix in fragments or panels can be made compact");
  if (compacting_) throw invalid("the weight is being made compact already");
  if (bound_) throw invalid("an op uses the weight already: make it compact before");
  compacting_ = true;
}

void Weight::end_compact(std::shared_ptr<Buffer> buffer, size_t matrix_bytes, uint64_t exceptions) {
  std::lock_guard lock(mutex_);
  compacting_ = false;
  if (!buffer) return;
  // The old one is given back when the caller's `buffer` goes, outside of the lock.
  buffer_.swap(buffer);
  format_ = Format::compact_bf16;
  matrix_bytes_ = matrix_bytes;
  exceptions_ = exceptions;
}

}  // namespace nibblet
