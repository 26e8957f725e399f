#pragma once

#include <cstddef>
#include <initializer_list>

#include "kernels/attention/attention.h"
#include "kernels/numerics/element.h"

namespace nibblet {

enum CachePart : int32_t { kKey = 0, kValue = 1 };

/// Elements of one row of qkv.
NIBBLET_HD inline size_t qkv_row(const AttentionArgs& args) {
  return (size_t(args.heads) + 2 * size_t(args.kv_heads)) * args.head_dim;
}

/// Index in the cache of element 0 of the key or value at `position` of sequence `sequence` (its index in the step).
NIBBLET_HD inline size_t cache_index(const AttentionArgs& args, int32_t sequence, int32_t position,
                                     CachePart part, int32_t head) {
  const Step& step = *args.step;
  const int32_t page = step.pages[int64_t(sequence) * step.pages_per_sequence + position / kPageTokens];
  return (((size_t(page) * 2 + part) * args.kv_heads + head) * kPageTokens + position % kPageTokens) *
         args.head_dim;
}

/// What a cached element is multiplied by when it is read.
NIBBLET_HD inline float cache_scale(const AttentionArgs& args, CachePart part) {
  if (args.cache_type != DType::e4m3) return 1;
  return part == kKey ? args.k_scale : args.v_scale;
}

/// The specification of one token and head (reference.cc).
void attend_reference(const AttentionArgs& args, const Sequence& sequence, int32_t token, int32_t head);

/// Stores k and v of one token and kv head.
inline void append_to_cache(const AttentionArgs& args, const Sequence& sequence, int32_t token,
                            int32_t head) {
  const int32_t index = int32_t(&sequence - args.step->sequences);
  const int32_t position = sequence.position + (token - sequence.first);
  for (const CachePart part : {kKey, kValue}) {
    const float scale = cache_scale(args, part);
    const size_t from =
        size_t(token) * qkv_row(args) + (size_t(args.heads) + part * args.kv_heads + head) * args.head_dim;
    const size_t to = cache_index(args, index, position, part, head);
    for (int32_t i = 0; i < args.head_dim; ++i) {
      write_element(args.cache, args.cache_type, to + i, read_element(args.qkv, args.type, from + i) / scale);
    }
  }
}

}  // namespace nibblet
