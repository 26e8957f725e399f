#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/moe/scratch.h"
#include "kernels/numerics/bf16.h"
#include "kernels/numerics/dot.h"
#include "kernels/numerics/partition.h"

namespace nibblet {
namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();

/// The index that follows `previous` (-1: none yet) in the order larger value first, then lower index.
int32_t next_best(const float* values, int32_t count, int32_t previous) {
  int32_t best = -1;
  for (int32_t i = 0; i < count; ++i) {
    const bool follows =
        previous < 0 || values[i] < values[previous] || (values[i] == values[previous] && i > previous);
    if (follows && (best < 0 || values[i] > values[best])) best = i;
  }
  return best;
}

/// The sum of a group's two best, or its only one.
float group_score(const float* choice, int32_t count) {
  const int32_t best = next_best(choice, count, -1);
  return count == 1 ? choice[best] : choice[best] + choice[next_best(choice, count, best)];
}

/// Keeps experts of all but the topk_groups best groups from being chosen.
void mask_groups(const MoeArgs& args, float* choice, float* group_scores) {
  const int32_t size = args.experts / args.groups;
  for (int32_t g = 0; g < args.groups; ++g) group_scores[g] = group_score(choice + g * size, size);
  int32_t group = -1;
  for (int32_t rank = 0; rank < args.groups; ++rank) {
    group = next_best(group_scores, args.groups, group);
    if (rank >= args.topk_groups) std::fill(choice + group * size, choice + (group + 1) * size, kNever);
  }
}

void choose(const MoeArgs& args, const MoeScratch& scratch, int64_t token) {
  const float* scores = scratch.scores + token * args.experts;
  for (int32_t e = 0; e < args.experts; ++e) {
    const float choice = scores[e] + args.bias[e];
    scratch.choice[e] = std::isnan(choice) ? kNever : choice;
  }
  if (args.topk_groups < args.groups) mask_groups(args, scratch.choice, scratch.choice + args.experts);

  int32_t* chosen = scratch.chosen + token * args.top_k;
  int32_t expert = -1;
  for (int32_t k = 0; k < args.top_k; ++k) {
    expert = next_best(scratch.choice, args.experts, expert);
    chosen[k] = expert;
  }
  std::sort(chosen, chosen + args.top_k);

  float sum = 0;
  for (int32_t k = 0; k < args.top_k; ++k) sum += scores[chosen[k]];
  float* weights = scratch.weights + token * args.top_k;
  for (int32_t k = 0; k < args.top_k; ++k) {
    const float weight = scores[chosen[k]];
    weights[k] = (args.normalize ? weight / (sum + 1e-20f) : weight) * args.scale;
  }
}

/// Sorts the entries by expert, tokens in order.
void list_entries(const MoeArgs& args, const MoeScratch& scratch) {
  const int32_t count = args.tokens * args.top_k;
  int32_t* first = scratch.first;
  std::fill(first, first + args.experts + 1, 0);
  for (int32_t i = 0; i < count; ++i) ++first[scratch.chosen[i] + 1];
  for (int32_t e = 0; e < args.experts; ++e) first[e + 1] += first[e];
  for (int32_t i = 0; i < count; ++i) scratch.entries[first[scratch.chosen[i]]++] = i;
  // Each start has moved to its end, which is the start of the next.
  std::copy_backward(first, first + args.experts, first + args.experts + 1);
  first[0] = 0;
}

}  // namespace

void moe_normalise(const MoeArgs& args, const MoeScratch& scratch, int worker, int workers) {
  const Range tokens = partition(args.tokens, worker, workers);
  for (int64_t t = tokens.first; t < tokens.last; ++t) {
    const float* x = args.x + t * args.hidden;
    float* normed = scratch.normed_row(t);
    const float mean = dot(x, x, args.hidden) / float(args.hidden);
    const float inverse = 1.0f / std::sqrt(mean + args.epsilon);
    for (int32_t k = 0; k < args.hidden; ++k) normed[k] = x[k] * inverse * args.norm[k];
    std::fill(normed + args.hidden, normed + scratch.hidden_stride, 0.0f);
  }
}

void moe_score(const MoeArgs& args, const MoeScratch& scratch, int worker, int workers) {
  // By (tile of tokens, expert): one token alone still occupies every worker, and many share the router's rows.
  const int64_t tiles = (int64_t(args.tokens) + kMoeTile - 1) / kMoeTile;
  const Range range = partition(tiles * args.experts, worker, workers);
  for (int64_t i = range.first; i < range.last; ++i) {
    const int64_t expert = i % args.experts;
    const int64_t token = i / args.experts * kMoeTile;
    const int64_t last = std::min<int64_t>(token + kMoeTile, args.tokens);
    const float* row = args.router + expert * args.hidden;
    for (int64_t t = token; t < last; ++t) {
      const float logit = dot(row, scratch.normed_row(t), args.hidden);
      scratch.scores[t * args.experts + expert] = 1 / (1 + std::exp(-logit));
    }
  }
}

void moe_choose(const MoeArgs& args, const MoeScratch& scratch, int worker, int workers) {
  if (worker == 0) {
    for (int64_t t = 0; t < args.tokens; ++t) choose(args, scratch, t);
    list_entries(args, scratch);
  }
  if (args.exact) return;
  const Range values = partition(int64_t(args.tokens) * scratch.hidden_stride, worker, workers);
  for (int64_t i = values.first; i < values.last; ++i) scratch.normed[i] = round_to_bf16(scratch.normed[i]);
}

}  // namespace nibblet
