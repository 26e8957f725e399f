#pragma once

#include <bit>
#include <cstddef>

#include "kernels/cuda/device.h"
#include "kernels/step.h"

namespace nibblet {

/// The first fields of a Step, as they lie there.
struct StepHead {
  int32_t tokens;
  int32_t sequence_count;
  int32_t row_count;
  int32_t pages_per_sequence;
  const int32_t* ids;
  const int32_t* sequence_of;
  const Sequence* sequences;
  const int32_t* pages;
};

/// Reads them in one trip to memory, where the compiler would fetch a pointer only once the count before it allows its
/// use: hence volatile. `step` is 16-byte aligned.
__device__ __forceinline__ StepHead load_step(const Step* step) {
  static_assert(offsetof(Step, pages) == offsetof(StepHead, pages) && sizeof(StepHead) == 48);
#ifdef __CUDACC__
  struct Words {
    uint4 part[3];
  } words;
#pragma unroll
  for (int i = 0; i < 3; ++i) {
    uint4& part = words.part[i];
    asm volatile("ld.volatile.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(part.x), "=r"(part.y), "=r"(part.z), "=r"(part.w)
                 : "l"(reinterpret_cast<const uint4*>(step) + i)
                 : "memory");
  }
  return std::bit_cast<StepHead>(words);
#else
  return {step->tokens, step->sequence_count, step->row_count, step->pages_per_sequence,
          step->ids,    step->sequence_of,    step->sequences, step->pages};
#endif
}

}  // namespace nibblet
