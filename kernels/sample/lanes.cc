#include "kernels/sample/lanes.h"

#include <bit>
#include <cstring>
#include <limits>

#include "kernels/numerics/exp.h"
#include "kernels/simd/cpu.h"

namespace nibblet {
namespace {

// Each template is inlined into functions compiled for one machine each, so that nothing is shared between machines.

template <int width>
struct Vectors {
  typedef float Floats __attribute__((vector_size(width * 4)));
  typedef int32_t Ints __attribute__((vector_size(width * 4)));
  typedef uint32_t Words __attribute__((vector_size(width * 4)));
};

template <typename Vector>
[[gnu::always_inline]] inline void load(Vector& vector, const void* from) {
  std::memcpy(&vector, from, sizeof vector);
}

/// Whether one of several vectors has a lane of 0: by their least lanes, since GCC 12 compares what is only asked for equality one
/// lane after another.
template <int width>
class ZeroLane {
 public:
  using Ints = typename Vectors<width>::Ints;
  using Words = typename Vectors<width>::Words;

  [[gnu::always_inline]] void look_at(const Ints& lanes) {
    const Words words = reinterpret_cast<const Words&>(lanes);
    least_ = words < least_ ? words : least_;
  }
  [[gnu::always_inline]] bool found() const {
    for (int lane = 0; lane < width; ++lane) {
      if (least_[lane] == 0) return true;
    }
    return false;
  }

 private:
  Words least_ = Words{} - 1;
};

template <int width>
[[gnu::always_inline]] inline float largest(const float* logits, int32_t count) {
  using Floats = typename Vectors<width>::Floats;
  constexpr float kLowest = -std::numeric_limits<float>::infinity();
  // Comparisons with NaN are false, so that it never replaces anything. Four at a time: one would wait for itself.
  Floats best[4];
  for (Floats& each : best) each = Floats{} + kLowest;
  int32_t i = 0;
  for (; i + 4 * width <= count; i += 4 * width) {
    for (int j = 0; j < 4; ++j) {
      Floats values;
      load(values, logits + i + j * width);
      best[j] = values > best[j] ? values : best[j];
    }
  }
  float result = kLowest;
  for (const Floats& each : best) {
    for (int lane = 0; lane < width; ++lane) result = each[lane] > result ? each[lane] : result;
  }
  for (; i < count; ++i) result = logits[i] > result ? logits[i] : result;
  return result;
}

template <int width>
[[gnu::always_inline]] inline int32_t find(const float* logits, int32_t count, float value) {
  using Floats = typename Vectors<width>::Floats;
  using Ints = typename Vectors<width>::Ints;
  const int32_t bits = std::bit_cast<int32_t>(value + 0.0f);
  int32_t i = 0;
  for (; i + 4 * width <= count; i += 4 * width) {
    ZeroLane<width> equal;
    for (int j = 0; j < 4; ++j) {
      Floats values;
      load(values, logits + i + j * width);
      // Adding makes 0 of -0.
      values += 0.0f;
      equal.look_at(reinterpret_cast<Ints>(values) ^ bits);
    }
    if (equal.found()) break;
  }
  while (i < count && logits[i] != value) ++i;
  return i;
}

template <int width>
[[gnu::always_inline]] inline void distances(float* values, float largest, float temperature) {
  using Floats = typename Vectors<width>::Floats;
  const Floats top = Floats{} + largest;
  const Floats lowest = Floats{} - std::numeric_limits<float>::infinity();
  // Dividing by 1 changes nothing and takes most of the time.
  const bool divided = temperature != 1;
  for (int32_t i = 0; i < kSampleBlock; i += width) {
    Floats score;
    load(score, values + i);
    score = score == score ? score : lowest;
    Floats distance = score - top;
    if (divided) distance = distance / temperature;
    distance = score == top ? Floats{} : distance;
    std::memcpy(values + i, &distance, sizeof distance);
  }
}

template <int width>
[[gnu::always_inline]] inline void places(const float* values, int32_t* places, int32_t last) {
  using Floats = typename Vectors<width>::Floats;
  using Ints = typename Vectors<width>::Ints;
  const Floats end = Floats{} + float(last);
  for (int32_t i = 0; i < kSampleBlock; i += width) {
    Floats scaled;
    load(scaled, values + i);
    scaled = scaled * -32.0f;
    const Floats bounded = scaled < end ? scaled : end;
    const Ints whole = __builtin_convertvector(bounded, Ints);
    std::memcpy(places + i, &whole, sizeof whole);
  }
}

template <int width>
[[gnu::always_inline]] inline void weights(float* values) {
  for (int32_t i = 0; i < kSampleBlock; i += width) {
    typename Vectors<width>::Floats lanes;
    load(lanes, values + i);
    exp_lanes<typename Vectors<width>::Floats, typename Vectors<width>::Ints>(lanes);
    std::memcpy(values + i, &lanes, sizeof lanes);
  }
}

template <int width>
[[gnu::always_inline]] inline uint64_t equal(const int32_t* places, int32_t place) {
  using Ints = typename Vectors<width>::Ints;
  // Most blocks have none: that is quickly seen.
  ZeroLane<width> found;
  for (int32_t i = 0; i < kSampleBlock; i += width) {
    Ints lanes;
    load(lanes, places + i);
    found.look_at(lanes ^ place);
  }
  if (!found.found()) return 0;
  uint64_t mask = 0;
  for (int32_t i = 0; i < kSampleBlock; ++i) mask |= uint64_t(places[i] == place) << i;
  return mask;
}

#define NIBBLET_SAMPLE_LANES(name, target, width)                                                            \
  target float largest_##name(const float* logits, int32_t count) { return largest<width>(logits, count); }  \
  target int32_t find_##name(const float* logits, int32_t count, float value) {                              \
    return find<width>(logits, count, value);                                                                \
  }                                                                                                          \
  target void distances_##name(float* values, float largest, float temperature) {                            \
    distances<width>(values, largest, temperature);                                                          \
  }                                                                                                          \
  target void places_##name(const float* values, int32_t* to, int32_t last) {                                \
    places<width>(values, to, last);                                                                         \
  }                                                                                                          \
  target void weights_##name(float* values) { weights<width>(values); }                                      \
  target uint64_t equal_##name(const int32_t* places, int32_t place) { return equal<width>(places, place); } \
  constexpr SampleLanes lanes_##name = {largest_##name, find_##name,    distances_##name,                    \
                                        places_##name,  weights_##name, equal_##name};

NIBBLET_SAMPLE_LANES(portable, , 4)
#ifdef __x86_64__
NIBBLET_SAMPLE_LANES(avx2, [[gnu::target("avx2")]], 8)
NIBBLET_SAMPLE_LANES(avx512, [[gnu::target("avx512f,avx512dq,avx512bw,avx512vl,prefer-vector-width=512")]],
                     16)
#endif
#undef NIBBLET_SAMPLE_LANES

}  // namespace

const SampleLanes& sample_lanes() {
#ifdef __x86_64__
  if (selected_cpu_variant() >= CpuVariant::avx512) return lanes_avx512;
  if (selected_cpu_variant() >= CpuVariant::avx2) return lanes_avx2;
#endif
  return lanes_portable;
}

}  // namespace nibblet
