#include "kernels/moe/moe.h"

#include "kernels/moe/scratch.h"

namespace nibblet {

size_t moe_scratch_bytes(const MoeArgs& args, int64_t tokens) { return MoeScratch(args, tokens).bytes; }

void moe(const MoeArgs& args, int phase, int worker, int workers) {
  constexpr decltype(&moe_up) phases[kMoePhases] = {moe_normalise, moe_score, moe_choose,
                                                    moe_up,        moe_down,  moe_combine};
  phases[phase](args, MoeScratch(args, args.tokens), worker, workers);
}

}  // namespace nibblet
