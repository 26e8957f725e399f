#pragma once

#include <cstddef>
#include <cstdint>

namespace nibblet {

/// Reads memory as fast as a machine does and nothing else: the sum of 64-bit words, a contiguous part a worker.
/// It is what the memory-bound ops are measured against. Phases: 1.
struct ReadArgs {
  const uint64_t* words;  ///< 64-byte aligned
  size_t count;           ///< a multiple of 64
  uint64_t* sums;         ///< [workers]
};

constexpr int kReadPhases = 1;
void read_words(const ReadArgs& args, int phase, int worker, int workers);

}  // namespace nibblet
