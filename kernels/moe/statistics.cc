#include "kernels/moe/moe.h"
#include "kernels/moe/scratch.h"

namespace nibblet {
namespace {

int64_t count_zeros(const float* values, int32_t count) {
  int64_t zeros = 0;
  for (int32_t i = 0; i < count; ++i) zeros += values[i] == 0;
  return zeros;
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
    if (scratch.first[e + 1] > scratch.first[e]) {
      counters[kMoeWeightBytes] += args.up.matrix_bytes + args.down.matrix_bytes;
    }
  }
  if (shared > 0) counters[kMoeWeightBytes] += args.shared_up.matrix_bytes + args.shared_down.matrix_bytes;
}

}  // namespace nibblet
