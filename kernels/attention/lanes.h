#pragma once

#include <cstdint>

#include "kernels/numerics/dtype.h"

namespace nibblet {

/// The loops of attention beside the inner product, for the machine's vectors. All variants give the same bits.
struct AttentionLanes {
  /// Of cached elements: as in panels.h.
  void (*pack_keys)(DType type, const void* keys, int32_t count, int32_t head_dim, uint32_t* panels);
  void (*pack_values)(DType type, const void* values, int32_t count, int32_t head_dim, int32_t channels,
                      uint32_t* panels);
  bool (*finite)(DType type, const void* elements, int32_t count);
  /// Turns the scores of a page, -infinity where nothing is seen, into weights relative to the running maximum, and adds them to
  /// the running total. @return what earlier sums are to be multiplied by
  float (*weigh)(float* scores, float& largest, float& total);
  /// sums = sums · factor, sums += products; `count` a multiple of 16.
  void (*scale)(float* sums, float factor, int32_t count);
  void (*add)(float* sums, const float* products, int32_t count);
};

/// Those of the variant in use (simd/cpu.h).
const AttentionLanes& attention_lanes();

}  // namespace nibblet
