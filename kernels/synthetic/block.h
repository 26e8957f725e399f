#pragma once

#include <cstring>

#include "kernels/numerics/host_device.h"
#include "kernels/synthetic/draw.h"

namespace nibblet {

NIBBLET_HD constexpr uint64_t splitmix64(uint64_t seed, uint64_t index) {
  uint64_t z = seed + (index + 1) * 0x9E3779B97F4A7C15u;
  z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
  z = (z ^ z >> 27) * 0x94D049BB133111EBu;
  return z ^ z >> 31;
}

/// What one random word becomes.
template <Draw draw, bool alternate>
struct DrawBlock {
  static constexpr size_t kBytes = draw == Draw::pairs                           ? 4
                                   : draw == Draw::bytes || draw == Draw::halves ? 8
                                                                                 : 16;
  static constexpr size_t bytes = alternate ? 2 * kBytes : kBytes;

  NIBBLET_HD static void fill(const void* table, uint64_t bits, uint8_t* out) {
    if constexpr (draw == Draw::pairs) {
      const uint8_t* entries = static_cast<const uint8_t*>(table);
      for (int i = 0; i < 4; ++i) out[i] = entries[bits >> 16 * i & 0xffff];
    } else if constexpr (draw == Draw::bytes) {
      const uint8_t* entries = static_cast<const uint8_t*>(table);
      for (int i = 0; i < 8; ++i) out[i] = entries[bits >> 8 * i & 0xff];
    } else if constexpr (draw == Draw::halves) {
      fill_lanes<uint16_t>(table, bits, out);
    } else {
      fill_lanes<uint32_t>(table, bits, out);
    }
  }

 private:
  template <class T>
  NIBBLET_HD static void store(uint8_t* out, T value) {
    std::memcpy(out, &value, sizeof value);
  }

  template <class T>
  NIBBLET_HD static void fill_lanes(const void* table, uint64_t bits, uint8_t* out) {
    constexpr T kSign = T(T{1} << (8 * sizeof(T) - 1));
    for (int i = 0; i < 4; ++i) {
      const T entry = static_cast<const T*>(table)[bits >> 16 * i & 0xfff];
      if constexpr (alternate) {
        store(out + 2 * i * sizeof(T), entry);
        store(out + (2 * i + 1) * sizeof(T), T(entry ^ kSign));
      } else {
        store(out + i * sizeof(T), entry);
      }
    }
  }
};

}  // namespace nibblet
