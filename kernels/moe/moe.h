#pragma once

#include "kernels/linear/matmul.h"
#include "kernels/weight.h"

namespace nibblet {

/// A whole mixture-of-experts layer, residual included (model.md 2.4).
///
///   x̂ = RMSNorm(x) · norm in float32 (then rounded to bf16 for the experts unless exact; the router reads it in float32)
///   s = sigmoid(router · x̂);  choose the top_k of s + bias (ties: lower index) among the topk_groups groups with the
///   largest sum of their two best s + bias;  w_e = s_e (divided by their sum + 1e-20 when normalize) · scale
///   y[t] = x[t] + sum over chosen e, ascending, of w_e · down_e(relu(up_e x̂)²) + shared_down(relu(shared_up x̂)²)
/// The hidden activation is rounded to bf16 unless exact. Each expert's weights are read once for all its tokens.
/// The sum of a token does not depend on the other tokens.
/// Needs top_k ≤ experts and groups that divide experts; a NaN score is chosen last.
/// Phases: 0 norm, 1 router products, 2 choice and lists of tokens per expert, 3 up, 4 down, 5 sums and
/// residual.
struct MoeArgs {
  int32_t tokens;
  int32_t hidden;
  float* x;  ///< [tokens, hidden] in and out
  const float* norm;
  float epsilon;
  bool exact;
  const float* router;  ///< [experts, hidden]
  const float* bias;    ///< [experts]
  int32_t experts;
  int32_t top_k;
  int32_t groups;
  int32_t topk_groups;
  bool normalize;
  float scale;
  WeightView up;                  ///< `experts` matrices of [width, hidden]
  WeightView down;                ///< `experts` matrices of [hidden, width]
  WeightView shared_up;           ///< [shared_width, hidden]; data null: no shared expert
  WeightView shared_down;         ///< [hidden, shared_width]
  const float* up_bias;           ///< [experts, width] or null
  const float* down_bias;         ///< [experts, hidden] or null
  const float* shared_up_bias;    ///< [shared_width] or null
  const float* shared_down_bias;  ///< [hidden] or null
  void* scratch;                  ///< moe_scratch_bytes, 64-byte aligned
};

size_t moe_scratch_bytes(const MoeArgs& args, int64_t tokens);
constexpr int kMoePhases = 6;
/// Uses plan_matmul for the weights' layout; with rows weights this is the scalar specification.
void moe(const MoeArgs& args, int phase, int worker, int workers);

/// What moe_statistics counts, as indices: hidden activations and how many of them were zero (of the shared expert too),
/// bytes of expert weights that the products read, and from kMoeExperts on the tokens of every routed expert.
enum MoeCounter : int { kMoeActivations, kMoeZeros, kMoeWeightBytes, kMoeExperts };
/// Adds what a call did, from its scratch, to counters [kMoeExperts + experts]. After the last phase, on one thread.
void moe_statistics(const MoeArgs& args, uint64_t* counters);

}  // namespace nibblet
