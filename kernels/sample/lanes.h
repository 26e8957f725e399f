#pragma once

#include <cstdint>

namespace nibblet {

/// Tokens of a row that are looked at together.
constexpr int32_t kSampleBlock = 64;

/// The loops over a vocabulary, for the machine's vectors. All variants give the same bits.
struct SampleLanes {
  /// The largest of `count` logits; -infinity for NaN and for none.
  float (*largest)(const float* logits, int32_t count);
  /// The first of `count` logits that equals `value`, a number; `count` when none does.
  int32_t (*find)(const float* logits, int32_t count, float value);
  /// Of a block: scores become distances (score - largest) / temperature, 0 for scores that tie with the largest, infinite ones
  /// too, and -infinity for NaN.
  void (*distances)(float* values, float largest, float temperature);
  /// Of a block of distances: buckets of a thirty-second of a nat; what lies further than the last one shares it.
  void (*places)(const float* values, int32_t* places, int32_t last);
  /// Of a block: distances become weights.
  void (*weights)(float* values);
  /// One bit for each of a block's places that is `place`.
  uint64_t (*equal)(const int32_t* places, int32_t place);
};

/// Those of the variant in use (simd/cpu.h).
const SampleLanes& sample_lanes();

}  // namespace nibblet
