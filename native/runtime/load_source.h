#pragma once

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "kernels/numerics/bf16.h"
#include "kernels/numerics/f16.h"
#include "native/runtime/load.h"

/// What the loads of tensors and of weights share.
namespace nibblet {

inline Error bad_format(const std::string& message) { return Error("BAD_FORMAT", message); }

inline bool widens(DType type) { return type == DType::f32 || type == DType::bf16 || type == DType::f16; }

/// Element `index` of f32, bf16 or f16 data that need not be aligned.
inline float widen(const uint8_t* data, DType type, size_t index) {
  const auto read = [&]<class Bits>(Bits bits) {
    std::memcpy(&bits, data + index * sizeof bits, sizeof bits);
    return bits;
  };
  switch (type) {
    case DType::f32:
      return read(float{});
    case DType::bf16:
      return bf16_to_float(read(uint16_t{}));
    case DType::f16:
      return f16_to_float(read(uint16_t{}));
    default:
      throw invalid(std::string("cannot widen ") + dtype_name(type) + " to f32");
  }
}

/// Where sources make bytes, kept from one load to the next: the engine thread runs them one at a time.
struct LoadScratch {
  std::vector<uint8_t> elements, block_scales, row_scales;
};
inline thread_local LoadScratch load_scratch;

inline bool is_cancelled(const Execution& execution) {
  return execution.cancelled && execution.cancelled->load(std::memory_order_relaxed);
}

}  // namespace nibblet
