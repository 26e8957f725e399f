#pragma once

#include "kernels/numerics/dtype.h"
#include "kernels/step.h"

namespace nibblet {

/// The Mamba-2 mixer between its two projections (Dao & Gu 2024, arXiv 2405.21060; model.md 2.3).
///
/// projected[t] = z (inner) | x (inner) | B (groups · state) | C (groups · state) | dt (heads); inner = heads · head_dim.
///   u = silu(causal depthwise convolution of x|B|C, kernel `kernel`, with bias)
///   dt = softplus(dt + dt_bias), identity above 20; no clamp
///   S = exp(-exp(a_log) · dt) · S + (dt · x) ⊗ B;  y = S · C + d · x       per head, head h uses group h / (heads / groups)
///   v = y · silu(z);  out = v · rsqrt(mean over the group of v² + epsilon) · norm,   groups of inner / groups channels
/// Float32 inside; only `projected`, `y` and the convolution state have the activation dtype.
/// A sequence at position 0 starts from zero state; inactive rows leave both states untouched (their y is undefined).
/// Tokens are scanned in order, so a prompt in pieces gives the same bits as in one.
/// Phases: 0 convolution and SiLU, 1 scan, 2 gated norm.
struct MambaArgs {
  const Step* step;
  const Slot* slots;  ///< may be null when no sequence decodes
  int32_t heads;
  int32_t head_dim;
  int32_t groups;
  int32_t state;
  int32_t kernel;
  float epsilon;
  DType type;                ///< of projected, y and conv_state: f32 or bf16
  const void* projected;     ///< [tokens, 2 · inner + 2 · groups · state + heads]
  const float* conv_weight;  ///< [channels, kernel], channels = inner + 2 · groups · state
  const float* conv_bias;    ///< [channels] or null
  const float* dt_bias;      ///< [heads]
  const float* a_log;        ///< [heads]
  const float* d;            ///< [heads]
  const float* norm;         ///< [inner]
  void* conv_state;          ///< [slots, channels, kernel - 1], oldest first
  float* ssm_state;          ///< [slots, heads, head_dim, state]
  void* y;                   ///< [tokens, inner]
  float* convolved;          ///< scratch: tokens · channels floats
  float* scanned;            ///< scratch: tokens · inner floats
};

constexpr int kMambaPhases = 3;
/// The scalar specification.
void mamba_reference(const MambaArgs& args, int phase, int worker, int workers);
/// Vectorised over channels and state; the order of an element's sums depends on the shape alone.
void mamba(const MambaArgs& args, int phase, int worker, int workers);

/// All three phases in one, of pairs of a sequence and a group, which depend on nothing outside: for steps so short that barriers
/// between phases are felt. The same bits. Needs mamba_groups_stand_alone.
void mamba_by_groups(const MambaArgs& args, int phase, int worker, int workers);
/// Whether each group's channels are whole vectors, of a kernel that the variants know.
bool mamba_groups_stand_alone(const MambaArgs& args);

}  // namespace nibblet
