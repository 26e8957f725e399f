#pragma once

#include <cstddef>
#include <cstdint>

namespace nibblet {

/// Element types of tensors. NVFP4 is not among them: four-bit codes exist only inside a weight.
enum class DType : uint8_t { f32, bf16, f16, e4m3, u8, i32, u32 };

constexpr size_t dtype_bytes(DType type) {
  switch (type) {
    case DType::f32:
    case DType::i32:
    case DType::u32:
      return 4;
    case DType::bf16:
    case DType::f16:
      return 2;
    case DType::e4m3:
    case DType::u8:
      return 1;
  }
  return 0;
}

}  // namespace nibblet
