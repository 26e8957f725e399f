#pragma once

#include "kernels/numerics/dtype.h"
#include "kernels/step.h"

namespace nibblet {

/// y[t] = table[id(t)] in float32, where id(t) is Step::ids[t], or the slot's last sampled token when that is -1.
/// Phases: 1. Ids are checked by the caller.
struct EmbedArgs {
  const Step* step;
  const Slot* slots;  ///< may be null when no id is -1
  const void* table;  ///< [vocabulary, hidden], f32 or bf16
  DType table_type;
  int32_t hidden;
  float* y;  ///< [tokens, hidden]
};

constexpr int kEmbedPhases = 1;
void embed(const EmbedArgs& args, int phase, int worker, int workers);

}  // namespace nibblet
