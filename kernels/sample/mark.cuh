#pragma once

#include "kernels/sample/layout.cuh"

namespace nibblet {

/// Whether the prompt tokens of a sequence have to be marked seen.
__device__ __forceinline__ bool is_counted_prompt(const Sequence& sequence) {
  return (sequence.flags & (kCount | kDecode)) == kCount;
}

/// Phase 0 of sample() for the ids [first, last) of a sequence: the work of a block.
__device__ __noinline__ inline void mark_prompt(const SampleArgs& args, const int32_t* ids,
                                                const Sequence& sequence, int32_t first, int32_t last) {
  uint8_t* seen = args.seen + int64_t(sequence.slot) * args.vocabulary;
  if (sequence.position == 0) {
    uint32_t* counts = args.counts + int64_t(sequence.slot) * args.vocabulary;
    for (int32_t id = first + int32_t(threadIdx.x); id < last; id += kSampleThreads) {
      seen[id] = 0;
      counts[id] = 0;
    }
    __syncthreads();
  }
  for (int32_t t = int32_t(threadIdx.x); t < sequence.count; t += kSampleThreads) {
    const int32_t id = ids[sequence.first + t];
    if (id >= first && id < last) seen[id] = 1;
  }
  __syncthreads();
}

/// Marks the ids [first, last) of the prompts that fall to the blocks of `row` although it is not theirs: every
/// capacity-th of the sequences, where none of the `rows` rows is theirs.
__device__ inline void mark_prompts_without_row(const SampleArgs& args, const Step& step, int32_t rows,
                                                int32_t row, int32_t capacity, int32_t first, int32_t last) {
  for (int32_t s = row; s < step.sequence_count; s += capacity) {
    const Sequence sequence = step.sequences[s];
    if (!is_counted_prompt(sequence)) continue;
    bool has_row = false;
#pragma unroll 1
    for (int32_t r = 0; r < rows; ++r) has_row |= step.rows[r].sequence == s;
    if (!has_row) mark_prompt(args, step.ids, sequence, first, last);
  }
}

}  // namespace nibblet
