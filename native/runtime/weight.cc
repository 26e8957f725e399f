#include "native/runtime/weight.h"

#include <string>
#include <vector>

#include "kernels/pack/pack.h"
#include "native/runtime/error.h"

namespace nibblet {

Weight::Weight(std::shared_ptr<Device> device, Format format, Layout layout, int32_t matrices, int32_t out,
               int32_t in)
    : format_(format), layout_(layout), matrices_(matrices), out_(out), in_(in) {
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

WeightView Weight::view() const {
  return {format_,       layout_,       matrices_,
          out_,          in_,           buffer_->data(),
          matrix_bytes_, row_scales(0), input_scale_.load(std::memory_order_relaxed)};
}

}  // namespace nibblet
