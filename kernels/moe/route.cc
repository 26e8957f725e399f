#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/moe/scratch.h"
#include "kernels/numerics/dot.h"
#include "kernels/numerics/partition.h"
#include "kernels/numerics/rows.h"
#include "kernels/simd/cpu.h"
#include "kernels/simd/dispatch.h"

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

/// Scores of (token, expert) pairs [first, last) of a tile that starts at `token` and has `tokens` tokens, `together` pairs at
/// a time: one sum alone would wait for itself.
template <int together>
[[gnu::always_inline]] inline void score_pairs(const MoeArgs& args, const MoeScratch& scratch, int64_t token,
                                               int64_t tokens, int64_t first, int64_t last) {
  typedef float Lanes __attribute__((vector_size(64)));
  const auto row = [&](int64_t pair) { return args.router + pair / tokens * args.hidden; };
  const auto normed = [&](int64_t pair) { return scratch.normed_row(token + pair % tokens); };
  const int32_t whole = args.hidden / 16 * 16;
  for (int64_t pair = first; pair < last; pair += together) {
    const float* a[together];
    const float* b[together];
    Lanes lanes[together];
    for (int j = 0; j < together; ++j) {
      const int64_t each = std::min(pair + j, last - 1);
      a[j] = row(each);
      b[j] = normed(each);
      lanes[j] = Lanes{};
    }
    for (int32_t k = 0; k < whole; k += 16) {
#pragma GCC unroll 4
      for (int j = 0; j < together; ++j) {
        Lanes x, y;
        std::memcpy(&x, a[j] + k, sizeof x);
        std::memcpy(&y, b[j] + k, sizeof y);
        lanes[j] += x * y;
      }
    }
    for (int64_t each = pair; each < std::min<int64_t>(pair + together, last); ++each) {
      const int64_t j = each - pair;
      OrderedSum sum;
      std::memcpy(sum.partial, &lanes[j], sizeof sum.partial);
      sum.add(args.hidden - whole, [&](int32_t k) { return a[j][whole + k] * b[j][whole + k]; });
      scratch.scores[(token + each % tokens) * args.experts + each / tokens] =
          1 / (1 + std::exp(-sum.total()));
    }
  }
}

void score_portable(const MoeArgs& args, const MoeScratch& scratch, int64_t token, int64_t tokens,
                    int64_t first, int64_t last) {
  score_pairs<1>(args, scratch, token, tokens, first, last);
}
#ifdef __x86_64__
[[gnu::target("avx2")]] void score_avx2(const MoeArgs& args, const MoeScratch& scratch, int64_t token,
                                        int64_t tokens, int64_t first, int64_t last) {
  score_pairs<4>(args, scratch, token, tokens, first, last);
}
[[gnu::target("avx512f")]] void score_avx512(const MoeArgs& args, const MoeScratch& scratch, int64_t token,
                                             int64_t tokens, int64_t first, int64_t last) {
  score_pairs<4>(args, scratch, token, tokens, first, last);
}
#endif

}  // namespace

void moe_normalise(const MoeArgs& args, const MoeScratch& scratch, int worker, int workers) {
  const Range tokens = partition(args.tokens, worker, workers);
  run_vectorized([&]() NIBBLET_VECTORIZED {
    for (int64_t t = tokens.first; t < tokens.last; ++t) {
      const float* x = args.x + t * args.hidden;
      float* normed = scratch.normed_row(t);
      const float mean = dot(x, x, args.hidden) / float(args.hidden);
      const float inverse = 1.0f / std::sqrt(mean + args.epsilon);
      for (int32_t k = 0; k < args.hidden; ++k) normed[k] = x[k] * inverse * args.norm[k];
      std::fill(normed + args.hidden, normed + scratch.hidden_stride, 0.0f);
    }
  });
}

void moe_score(const MoeArgs& args, const MoeScratch& scratch, int worker, int workers) {
  auto* score = score_portable;
#ifdef __x86_64__
  if (selected_cpu_variant() >= CpuVariant::avx2) score = score_avx2;
  if (selected_cpu_variant() >= CpuVariant::avx512) score = score_avx512;
#endif
  // By pairs: one token alone still occupies every worker, and the tokens of a tile share the router's rows.
  const int64_t pairs = int64_t(args.tokens) * args.experts;
  const Range range = partition(pairs, worker, workers);
  const int64_t tile_pairs = int64_t(kMoeTile) * args.experts;
  for (int64_t start = range.first / tile_pairs * tile_pairs; start < range.last; start += tile_pairs) {
    const int64_t token = start / args.experts;
    const int64_t tokens = std::min<int64_t>(kMoeTile, args.tokens - token);
    score(args, scratch, token, tokens, std::max(range.first - start, int64_t{0}),
          std::min(range.last - start, tokens * args.experts));
  }
}

void moe_choose(const MoeArgs& args, const MoeScratch& scratch, int worker, int workers) {
  if (worker == 0) {
    for (int64_t t = 0; t < args.tokens; ++t) choose(args, scratch, t);
    list_entries(args, scratch);
  }
  if (args.exact) return;
  const Range blocks = partition(int64_t(args.tokens) * scratch.row_blocks(), worker, workers);
  const int32_t count = int32_t(blocks.last - blocks.first);
  float* normed = scratch.normed + blocks.first * kBlockInputs;
  run_vectorized([&]() NIBBLET_VECTORIZED { round_to_bf16(normed, count * kBlockInputs); });
  const BfpKernels* bfp = up_bfp(args, args.up);
  if (bfp == nullptr) bfp = up_bfp(args, args.shared_up);
  if (bfp != nullptr) bfp->from_floats(normed, count, scratch.blocks + blocks.first);
}

}  // namespace nibblet
