#pragma once

#include <memory>
#include <string>
#include <vector>

#include "kernels/numerics/dtype.h"
#include "native/runtime/buffer.h"

namespace nibblet {

/// A dense row-major view of a buffer. Copies are cheap and keep the buffer alive.
struct Tensor {
  std::shared_ptr<Buffer> buffer;
  size_t offset = 0;
  DType dtype = DType::f32;
  std::vector<int64_t> shape;

  int64_t elements() const {
    int64_t product = 1;
    for (int64_t extent : shape) product *= extent;
    return product;
  }
  size_t bytes() const { return static_cast<size_t>(elements()) * dtype_bytes(dtype); }
  template <class T>
  T* as() const {
    return buffer ? reinterpret_cast<T*>(buffer->data() + offset) : nullptr;
  }
  explicit operator bool() const { return buffer != nullptr; }
};

const char* dtype_name(DType type);
/// `f32 [2, 3]`, for messages.
std::string describe(const Tensor& tensor);

}  // namespace nibblet
