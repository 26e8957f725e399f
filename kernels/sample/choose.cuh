#pragma once

#include "kernels/sample/bins.cuh"

namespace nibblet {

/// Where choose_token of choose.h is once the tokens can be found by their rank and mass: truncates, and draws. The work
/// of a block.
/// @param finder   find() as select(), heavy() the number of tokens that min-p keeps
/// @param total    the sum of all weights; not used with top-k
/// @return all threads get the TokenOrder number
template <class Finder>
__device__ uint64_t draw(const Finder& finder, const Sampling& sampling, int32_t vocabulary, float uniform,
                         double total) {
  enum { kTopK, kTopP, kMinP, kDraw };
  Cut kept = {0, uint32_t(vocabulary), 0}, cut{};
  // A loop, so that there is one copy of find().
#pragma unroll 1
  for (int step = kTopK; step <= kDraw; ++step) {
    uint64_t goal = 0;
    if (step == kTopK) {
      if (sampling.top_k <= 0 || sampling.top_k >= vocabulary) continue;
      goal = uint64_t(sampling.top_k);
    } else if (step == kTopP) {
      if (!(sampling.top_p < 1)) continue;
      goal = uint64_t(ceil(fmax(double(sampling.top_p), 0.0) * total * kMassUnits));
    } else if (step == kMinP) {
      if (!(sampling.min_p > 0)) continue;
      goal = finder.heavy();
      if (goal >= kept.count) continue;
    } else {
      // A uniform number is at most 1 - 2^-24, so that what is kept always reaches the goal.
      if (kept.mass > 0) total = double(kept.mass) / kMassUnits;
      goal = uint64_t(floor(double(uniform) * total * kMassUnits)) + 1;
    }
    cut = finder.find(step == kTopP || step == kDraw, goal);
    if (step != kDraw && cut.count < kept.count) kept = cut;
    if (step == kTopK) total = double(cut.mass) / kMassUnits;
  }
  return cut.token;
}

}  // namespace nibblet
