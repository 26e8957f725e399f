#include "kernels/attention/lanes.h"

#include <cmath>
#include <limits>

#include "kernels/attention/panels.h"
#include "kernels/numerics/exp.h"
#include "kernels/simd/dispatch.h"
#include "kernels/step.h"

namespace nibblet {
namespace {

// Each template is inlined into functions compiled for one machine each, so that nothing is shared between machines.

/// Calls body with the elements as what they are stored in.
template <typename Body>
[[gnu::always_inline]] inline auto with_type(DType type, const void* from, const Body& body) {
  if (type == DType::e4m3) return body(static_cast<const uint8_t*>(from));
  if (type == DType::bf16) return body(static_cast<const uint16_t*>(from));
  return body(static_cast<const uint32_t*>(from));
}

/// The sum of sixteen lanes, each over every sixteenth value, by a tree.
[[gnu::always_inline]] inline float sum_page(const float* values) {
  float lanes[16];
  for (int i = 0; i < 16; ++i) lanes[i] = values[i];
  for (int32_t j = 16; j < kPageTokens; j += 16) {
    for (int i = 0; i < 16; ++i) lanes[i] = lanes[i] + values[j + i];
  }
  for (int i = 0; i < 8; ++i) lanes[i] = lanes[i] + lanes[i + 8];
  for (int i = 0; i < 4; ++i) lanes[i] = lanes[i] + lanes[i + 4];
  return (lanes[0] + lanes[2]) + (lanes[1] + lanes[3]);
}

template <int width>
[[gnu::always_inline]] inline float weigh_page(float* scores, float& largest, float& total) {
  typedef typename VectorsOf<width>::Floats Floats;
  typedef typename VectorsOf<width>::Ints Ints;
  constexpr float kNothing = -std::numeric_limits<float>::infinity();
  Floats best = Floats{} + largest;
  for (int32_t j = 0; j < kPageTokens; j += width) {
    Floats lanes;
    std::memcpy(&lanes, scores + j, sizeof lanes);
    best = lanes > best ? lanes : best;
  }
  float top = largest;
  for (int lane = 0; lane < width; ++lane) top = best[lane] > top ? best[lane] : top;
  if (top == kNothing) {
    // Nothing of this page is seen (or everything seen so far weighs nothing): no difference may become NaN.
    for (int32_t j = 0; j < kPageTokens; ++j) scores[j] = 0;
    return 1;
  }
  const float rescale = vector_exp(largest - top);
  for (int32_t j = 0; j < kPageTokens; j += width) {
    Floats lanes;
    std::memcpy(&lanes, scores + j, sizeof lanes);
    lanes -= top;
    exp_lanes<Floats, Ints>(lanes);
    std::memcpy(scores + j, &lanes, sizeof lanes);
  }
  total = total * rescale + sum_page(scores);
  largest = top;
  return rescale;
}

#define NIBBLET_ATTENTION_LANES(name, target, width)                                                         \
  target void keys_##name(DType type, const void* from, int32_t count, int32_t head_dim, uint32_t* to) {     \
    with_type(type, from,                                                                                    \
              [&](auto* keys) NIBBLET_VECTORIZED { pack_keys<width>(keys, count, head_dim, to); });          \
  }                                                                                                          \
  target void values_##name(DType type, const void* from, int32_t count, int32_t head_dim, int32_t channels, \
                            uint32_t* to) {                                                                  \
    with_type(type, from,                                                                                    \
              [&](auto* values) NIBBLET_VECTORIZED { pack_values(values, count, head_dim, channels, to); }); \
  }                                                                                                          \
  target bool finite_##name(DType type, const void* from, int32_t count) {                                   \
    return with_type(                                                                                        \
        type, from, [&](auto* elements) NIBBLET_VECTORIZED { return all_finite(elements, size_t(count)); }); \
  }                                                                                                          \
  target float weigh_##name(float* scores, float& largest, float& total) {                                   \
    return weigh_page<width>(scores, largest, total);                                                        \
  }                                                                                                          \
  target void scale_##name(float* sums, float factor, int32_t count) {                                       \
    for (int32_t i = 0; i < count; ++i) sums[i] *= factor;                                                   \
  }                                                                                                          \
  target void add_##name(float* sums, const float* products, int32_t count) {                                \
    for (int32_t i = 0; i < count; ++i) sums[i] += products[i];                                              \
  }                                                                                                          \
  constexpr AttentionLanes lanes_##name = {keys_##name,  values_##name, finite_##name,                       \
                                           weigh_##name, scale_##name,  add_##name};

NIBBLET_ATTENTION_LANES(portable, , 4)
#ifdef __x86_64__
NIBBLET_ATTENTION_LANES(avx2, [[gnu::target("avx2")]], 8)
NIBBLET_ATTENTION_LANES(avx512, [[gnu::target("avx512f,avx512dq,avx512bw,avx512vl,prefer-vector-width=512")]],
                        16)
#endif
#undef NIBBLET_ATTENTION_LANES

}  // namespace

const AttentionLanes& attention_lanes() {
#ifdef __x86_64__
  if (selected_cpu_variant() >= CpuVariant::avx512) return lanes_avx512;
  if (selected_cpu_variant() >= CpuVariant::avx2) return lanes_avx2;
#endif
  return lanes_portable;
}

}  // namespace nibblet
