#pragma once

#include "kernels/attention/cache.h"
#include "kernels/cuda/device.h"

namespace nibblet::attention_device {

/// Index in qkv of element 0 of the key or value of a token and kv head.
__device__ __forceinline__ size_t fresh_index(const AttentionArgs& args, int32_t token, CachePart part,
                                              int32_t head) {
  return size_t(token) * qkv_row(args) + (size_t(args.heads) + part * args.kv_heads + head) * args.head_dim;
}

/// Appends element `i` of the key or value of a token that stands at `position`.
__device__ __forceinline__ void append_element(const AttentionArgs& args, int32_t sequence, int32_t position,
                                               int32_t token, CachePart part, int32_t head, int32_t i) {
  const float value = read_element(args.qkv, args.type, fresh_index(args, token, part, head) + i);
  write_element(args.cache, args.cache_type, cache_index(args, sequence, position, part, head) + i,
                value / cache_scale(args, part));
}

/// `value` as it is read again once the cache holds it, its scale included.
__device__ __forceinline__ float kept(const AttentionArgs& args, CachePart part, float value) {
  const float scale = cache_scale(args, part);
  if (args.cache_type == DType::e4m3) return e4m3_to_float(e4m3_from_float(value / scale)) * scale;
  return args.cache_type == DType::bf16 ? round_to_bf16(value) : value;
}

}  // namespace nibblet::attention_device
