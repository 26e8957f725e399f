#pragma once

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "kernels/pack/layout.h"

namespace nibblet {

/// Cached elements as panels of weight.h, in their own format, so that the inner product of the machine widens them.
/// A panel is rows of 16 words of 32 bits, one word for as many consecutive inputs as fit: one f32, two bf16, or four
/// e4m3 in the order 0, 2, 1, 3.
template <typename T>
constexpr int32_t kWordInputs = int32_t(4 / sizeof(T));

/// From four consecutive elements to a word, or to a vector of them.
template <typename T, typename Words>
[[gnu::always_inline]] inline void to_word(Words& bytes) {
  if constexpr (sizeof(T) == 1) {
    bytes = (bytes & 0xff0000ff) | (bytes >> 8 & 0xff00) | (bytes << 8 & 0xff0000);
  }
}

/// `width` words or floats.
template <int width>
struct VectorsOf {
  typedef uint32_t Words __attribute__((vector_size(width * 4)));
  typedef int32_t Ints __attribute__((vector_size(width * 4)));
  typedef float Floats __attribute__((vector_size(width * 4)));
};

/// Where lane `lane` of the upper or lower one of two rows of a transpose comes from, in its step with `distance`.
constexpr int crossed(int lanes, int distance, bool upper, int lane) {
  const bool other = (lane & distance) != 0;
  if (upper) return other ? lanes + lane : lane + distance;
  return other ? lanes + lane - distance : lane;
}

/// By reference: functions that return vectors depend on the machine.
template <int distance, bool upper, typename Words, int... lanes>
[[gnu::always_inline]] inline void cross(const Words& a, const Words& b, Words& to,
                                         std::integer_sequence<int, lanes...>) {
  typedef typename VectorsOf<sizeof...(lanes)>::Ints Ints;
  to = __builtin_shuffle(a, b, Ints{crossed(sizeof...(lanes), distance, upper, lanes)...});
}

/// Transposes `width` rows of `width` words in place.
template <int width, int distance = 1, typename Words>
[[gnu::always_inline]] inline void transpose(Words* rows) {
  if constexpr (distance < width) {
    for (int i = 0; i < width; ++i) {
      if ((i & distance) != 0) continue;
      const Words a = rows[i], b = rows[i + distance];
      constexpr std::make_integer_sequence<int, width> lanes;
      cross<distance, false>(a, b, rows[i], lanes);
      cross<distance, true>(a, b, rows[i + distance], lanes);
    }
    transpose<width, 2 * distance>(rows);
  }
}

/// Packs `count` keys of `head_dim` elements as rows of panels with head_dim inputs; absent rows of the last panel and
/// inputs up to the next multiple of 16 are 0.
/// @tparam width  words of the vectors to transpose with
template <int width, typename T>
[[gnu::always_inline]] inline void pack_keys(const T* keys, int32_t count, int32_t head_dim,
                                             uint32_t* panels) {
  constexpr int32_t inputs = kWordInputs<T>;
  const int32_t whole = head_dim / inputs;
  const int32_t words = round_up(head_dim, kBlockInputs) / inputs;
  for (int32_t first = 0; first < count; first += kPanelRows, panels += words * kPanelRows) {
    const int32_t rows = std::min(kPanelRows, count - first);
    if (rows < kPanelRows || words > whole) std::fill(panels, panels + words * kPanelRows, 0u);
    if (rows == kPanelRows && words == whole && words % width == 0) {
      typedef typename VectorsOf<width>::Words Words;
      for (int32_t w = 0; w < words; w += width) {
        for (int32_t r = 0; r < kPanelRows; r += width) {
          Words block[width];
          for (int i = 0; i < width; ++i) {
            std::memcpy(&block[i], keys + size_t(first + r + i) * head_dim + w * inputs, sizeof block[i]);
          }
          transpose<width>(block);
          for (int i = 0; i < width; ++i) {
            to_word<T>(block[i]);
            std::memcpy(panels + (w + i) * kPanelRows + r, &block[i], sizeof block[i]);
          }
        }
      }
      continue;
    }
    for (int32_t r = 0; r < rows; ++r) {
      const T* key = keys + size_t(first + r) * head_dim;
      uint32_t bytes;
      for (int32_t w = 0; w < whole; ++w) {
        std::memcpy(&bytes, key + w * inputs, sizeof bytes);
        to_word<T>(bytes);
        panels[w * kPanelRows + r] = bytes;
      }
      if (head_dim % inputs == 0) continue;
      bytes = 0;
      std::memcpy(&bytes, key + whole * inputs, size_t(head_dim % inputs) * sizeof(T));
      to_word<T>(bytes);
      panels[whole * kPanelRows + r] = bytes;
    }
  }
}

/// Packs the first `wanted` elements of `count` values, `head_dim` elements apart, as columns: panels of 16 channels
/// with round_up(count, 16) inputs, absent ones 0 (their weights are 0, and what a page held before may be NaN).
template <typename T>
[[gnu::always_inline]] inline void pack_values(const T* values, int32_t count, int32_t head_dim,
                                               int32_t wanted, uint32_t* panels) {
  constexpr int32_t inputs = kWordInputs<T>;
  const int32_t words = round_up(count, kBlockInputs) / inputs;
  for (int32_t first = 0; first < wanted; first += kPanelRows, panels += words * kPanelRows) {
    const int32_t channels = std::min(kPanelRows, wanted - first);
    const bool whole = channels == kPanelRows;
    for (int32_t w = 0; w < words; ++w) {
      T rows[inputs][kPanelRows] = {};
      for (int32_t i = 0; i < inputs && w * inputs + i < count; ++i) {
        const T* value = values + size_t(w * inputs + i) * head_dim + first;
        if (whole) {
          std::memcpy(rows[i], value, sizeof rows[i]);
        } else {
          std::memcpy(rows[i], value, size_t(channels) * sizeof(T));
        }
      }
      uint32_t* to = panels + w * kPanelRows;
      if constexpr (inputs == 1) {
        std::memcpy(to, rows[0], sizeof rows[0]);
      } else if constexpr (inputs == 2) {
        for (int32_t r = 0; r < kPanelRows; ++r) to[r] = uint32_t{rows[0][r]} | uint32_t{rows[1][r]} << 16;
      } else {
        for (int32_t r = 0; r < kPanelRows; ++r) {
          to[r] = uint32_t{rows[0][r]} | uint32_t{rows[2][r]} << 8 | uint32_t{rows[1][r]} << 16 |
                  uint32_t{rows[3][r]} << 24;
        }
      }
    }
  }
}

/// False when one of `count` elements is NaN or infinite. A weight of 0 does not keep those out of a sum, and the inner
/// product, made for checked weights, takes the NaN of e4m3 for 480.
template <typename T>
[[gnu::always_inline]] inline bool all_finite(const T* elements, size_t count) {
  // Adding one to an exponent of all ones (e4m3: to all ones) carries into the sign's place.
  constexpr uint32_t mask = sizeof(T) == 1 ? 0x7f7f7f7f : sizeof(T) == 2 ? 0x7f807f80 : 0x7f800000;
  constexpr uint32_t one = sizeof(T) == 1 ? 0x01010101 : sizeof(T) == 2 ? 0x00800080 : 0x00800000;
  constexpr uint32_t sign = sizeof(T) == 1 ? 0x80808080 : sizeof(T) == 2 ? 0x80008000 : 0x80000000;
  const uint8_t* from = reinterpret_cast<const uint8_t*>(elements);
  const size_t bytes = count * sizeof(T);
  uint32_t carries = 0;
  uint32_t word;
  for (size_t i = 0; i < bytes / 4; ++i) {
    std::memcpy(&word, from + i * 4, 4);
    carries |= (word & mask) + one;
  }
  if (bytes % 4 != 0) {
    word = 0;
    std::memcpy(&word, from + bytes / 4 * 4, bytes % 4);
    carries |= (word & mask) + one;
  }
  return (carries & sign) == 0;
}

}  // namespace nibblet
