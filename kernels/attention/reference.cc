#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/attention/cache.h"
#include "kernels/numerics/dot.h"
#include "kernels/numerics/element.h"
#include "kernels/numerics/partition.h"

namespace nibblet {
namespace {

/// Outputs of one head that are summed together; a larger head_dim takes more passes over the scores.
constexpr int32_t kBlock = 256;

/// Score of query `query` (index in qkv) with the key at `key` (index in the cache).
float score(const AttentionArgs& args, size_t query, size_t key) {
  const float sum = ordered_sum(args.head_dim, [&](int32_t i) {
    return read_element(args.qkv, args.type, query + i) *
           (read_element(args.cache, args.cache_type, key + i) * cache_scale(args, kKey));
  });
  return sum * args.scale;
}

}  // namespace

void attend_reference(const AttentionArgs& args, const Sequence& sequence, int32_t token, int32_t head) {
  const int32_t group = head / (args.heads / args.kv_heads);
  const int32_t length = sequence.position + (token - sequence.first) + 1;
  const int32_t index = int32_t(&sequence - args.step->sequences);
  const size_t query = size_t(token) * qkv_row(args) + size_t(head) * args.head_dim;
  float largest = -std::numeric_limits<float>::infinity();
  for (int32_t j = 0; j < length; ++j) {
    largest = std::max(largest, score(args, query, cache_index(args, index, j, kKey, group)));
  }
  for (int32_t first = 0; first < args.head_dim; first += kBlock) {
    const int32_t count = std::min(kBlock, args.head_dim - first);
    float total = 0;
    float sum[kBlock] = {};
    for (int32_t j = 0; j < length; ++j) {
      const float weight = std::exp(score(args, query, cache_index(args, index, j, kKey, group)) - largest);
      const size_t value = cache_index(args, index, j, kValue, group) + first;
      total += weight;
      for (int32_t i = 0; i < count; ++i) {
        sum[i] += weight * (read_element(args.cache, args.cache_type, value + i) * cache_scale(args, kValue));
      }
    }
    const size_t out = (size_t(token) * args.heads + head) * args.head_dim + first;
    for (int32_t i = 0; i < count; ++i) write_element(args.y, args.type, out + i, sum[i] / total);
  }
}

void attention_reference(const AttentionArgs& args, int phase, int worker, int workers) {
  if (phase > 1) return;
  const int32_t units = phase == 0 ? args.kv_heads : args.heads;
  const Range range = partition(int64_t(args.step->tokens) * units, worker, workers);
  for (int64_t i = range.first; i < range.last; ++i) {
    const int32_t token = int32_t(i / units);
    const int32_t unit = int32_t(i % units);
    const Sequence& sequence = args.step->sequences[args.step->sequence_of[token]];
    if (!is_live(sequence, args.slots)) continue;
    if (phase == 0) {
      append_to_cache(args, sequence, token, unit);
    } else {
      attend_reference(args, sequence, token, unit);
    }
  }
}

}  // namespace nibblet
