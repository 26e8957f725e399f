#pragma once

#include "kernels/numerics/dtype.h"
#include "kernels/step.h"

namespace nibblet {

/// Causal grouped-query attention without positions over a paged cache.
///
/// Token t of a sequence at position p appends k[t] and v[t] at p and attends to positions 0..p:
///   y[t, h] = sum over j of softmax_j(q[t, h] · k[j, g] · scale) · v[j, g],   g = h / (heads / kv_heads)
/// Float32 inside. An e4m3 cache holds e4m3(k / k_scale), saturating at 448, and is read as e4m3 · k_scale.
/// Inactive rows append nothing (their y is undefined). The page of position p of sequence s is
/// step.pages[s · pages_per_sequence + p / kPageTokens].
/// Phases: 0 append, 1 attend, or, where few tokens are split over workers (split.h), 1 scores, 2 weights, 3 sums.
struct AttentionArgs {
  const Step* step;
  const Slot* slots;  ///< may be null when no sequence decodes
  int32_t heads;
  int32_t kv_heads;
  int32_t head_dim;
  float scale;       ///< 1 / sqrt(head_dim)
  DType type;        ///< of qkv and y: f32 or bf16
  const void* qkv;   ///< [tokens, (heads + 2 · kv_heads) · head_dim]: q | k | v
  DType cache_type;  ///< f32, bf16 or e4m3
  void* cache;       ///< [pages, 2 (k, v), kv_heads, kPageTokens, head_dim]
  float k_scale;
  float v_scale;
  void* y;  ///< [tokens, heads · head_dim]
  /// On the CPU, 64-byte aligned, for steps of few tokens whose scores fit (split.h); null for none.
  float* scratch = nullptr;
  size_t scratch_floats = 0;
};

/// Floats of scratch of a token and head that sees so many pages: at most as many times those of one.
constexpr size_t attention_row_floats(int32_t pages) {
  return size_t(pages) * kPageTokens + (size_t(pages) + 16) / 16 * 16;
}

constexpr int kAttentionPhases = 4;
/// The scalar specification: scores twice (maximum, then sums), no scratch.
void attention_reference(const AttentionArgs& args, int phase, int worker, int workers);
/// Page by page with a running maximum; all query heads of a kv head read each page once.
void attention(const AttentionArgs& args, int phase, int worker, int workers);

}  // namespace nibblet
