#include "kernels/moe/moe.h"
#include "kernels/moe/scratch.h"
#include "kernels/pack/layout.h"

namespace nibblet {
namespace {

int64_t count_zeros(const float* values, int32_t count) {
  int64_t zeros = 0;
  for (int32_t i = 0; i < count; ++i) zeros += values[i] == 0;
  return zeros;
}

/// Bytes that a product reads of `down`: of columns only those that some token's activation multiplies, and the scales of the
/// blocks that they lie in. `row(i)` holds the activations of token i of `count`.
template <class Row>
uint64_t down_bytes(const WeightView& down, int64_t count, Row row) {
  if (down.layout != Layout::columns) return down.matrix_bytes;
  const auto live = [&](int32_t k) {
    for (int64_t i = 0; i < count; ++i) {
      if (row(i)[k] != 0) return true;
    }
    return false;
  };
  uint64_t bytes = 0;
  for (int32_t block = 0; block < down.in; block += kBlockInputs) {
    int32_t columns = 0;
    for (int32_t k = block; k < block + kBlockInputs && k < down.in; ++k) columns += live(k);
    bytes += uint64_t(columns) * column_bytes(down.out);
    if (columns > 0) bytes += column_block_bytes(down.out) - kBlockInputs * column_bytes(down.out);
  }
  return bytes;
}

}  // namespace

void moe_statistics(const MoeArgs& args, uint64_t* counters) {
  const MoeScratch scratch(args, args.tokens);
  const int32_t shared = args.shared_up.data == nullptr ? 0 : args.shared_up.out;
  for (int64_t t = 0; t < args.tokens; ++t) {
    for (int64_t entry = t * args.top_k; entry < (t + 1) * args.top_k; ++entry) {
      counters[kMoeZeros] += count_zeros(scratch.hidden_row(entry), args.up.out);
      counters[kMoeActivations] += args.up.out;
      counters[kMoeExperts + scratch.chosen[entry]] += 1;
    }
    if (shared > 0) counters[kMoeZeros] += count_zeros(scratch.shared_row(t), shared);
    counters[kMoeActivations] += shared;
  }
  for (int32_t e = 0; e < args.experts; ++e) {
    const int32_t first = scratch.first[e];
    const int64_t count = scratch.first[e + 1] - first;
    if (count == 0) continue;
    const auto row = [&](int64_t i) { return scratch.hidden_row(scratch.entries[first + i]); };
    counters[kMoeWeightBytes] += args.up.matrix_bytes + down_bytes(args.down, count, row);
  }
  if (shared > 0) {
    const auto row = [&](int64_t i) { return scratch.shared_row(i); };
    counters[kMoeWeightBytes] += args.shared_up.matrix_bytes + down_bytes(args.shared_down, args.tokens, row);
  }
}

}  // namespace nibblet
