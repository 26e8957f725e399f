#include "kernels/embed/embed.h"

#include <cstring>

#include "kernels/numerics/bf16.h"
#include "kernels/numerics/partition.h"

namespace nibblet {
namespace {

/// The id of a flat token: its own, or the slot's last sampled one.
int32_t id_of(const EmbedArgs& args, int64_t token) {
  int32_t id = args.step->ids[token];
  if (id >= 0) return id;
  const Sequence& sequence = args.step->sequences[args.step->sequence_of[token]];
  return args.slots[sequence.slot].token;
}

}  // namespace

void embed(const EmbedArgs& args, int, int worker, int workers) {
  Range range = partition(args.step->tokens, worker, workers);
  for (int64_t token = range.first; token < range.last; token++) {
    int64_t row = int64_t(id_of(args, token)) * args.hidden;
    float* y = args.y + token * args.hidden;
    if (args.table_type == DType::bf16) {
      const uint16_t* from = static_cast<const uint16_t*>(args.table) + row;
      for (int32_t k = 0; k < args.hidden; k++) y[k] = bf16_to_float(from[k]);
    } else {
      std::memcpy(y, static_cast<const float*>(args.table) + row, size_t(args.hidden) * sizeof(float));
    }
  }
}

}  // namespace nibblet
