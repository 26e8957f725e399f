#pragma once

#include <cstdint>

#include "kernels/numerics/host_device.h"

namespace nibblet {

struct PhiloxBlock {
  uint32_t word[4];
};

/// Philox4x32-10 (Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3, SC 2011): four random words
/// as a pure function of a counter and a key.
NIBBLET_HD constexpr PhiloxBlock philox4x32(PhiloxBlock counter, uint32_t key_low, uint32_t key_high) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53u} * counter.word[0];
    const uint64_t b = uint64_t{0xCD9E8D57u} * counter.word[2];
    counter = {{uint32_t(b >> 32) ^ counter.word[1] ^ key_low, uint32_t(b),
                uint32_t(a >> 32) ^ counter.word[3] ^ key_high, uint32_t(a)}};
    key_low += 0x9E3779B9u;
    key_high += 0xBB67AE85u;
  }
  return counter;
}

/// Uniform in [0, 1) with 24 bits.
NIBBLET_HD constexpr float uniform_from_bits(uint32_t bits) { return float(bits >> 8) * 0x1p-24f; }

}  // namespace nibblet
