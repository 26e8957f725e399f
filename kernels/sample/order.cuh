#pragma once

#include <bit>
#include <cstdint>

#include "kernels/sample/score.h"

namespace nibblet {

/// Tokens of a row as numbers: of two the one that Scores::before puts first is the larger. Every token has one of its own.
class TokenOrder {
 public:
  __device__ explicit TokenOrder(int32_t vocabulary) { id_bits_ = 32 - __clz(vocabulary - 1); }

  /// Larger for the larger score, and the same for both zeros. No score gives 0.
  __device__ static uint32_t of_score(float score) {
    const uint32_t bits = std::bit_cast<uint32_t>(score + 0.0f);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
  }
  /// The score with these of_score(); 0 for both zeros.
  __device__ static float score_of(uint32_t bits) {
    return std::bit_cast<float>(bits >> 31 ? bits & 0x7fffffffu : ~bits);
  }
  __device__ uint64_t operator()(float score, int32_t id) const {
    return uint64_t{of_score(score)} << id_bits_ | (mask() - uint64_t(id));
  }

  /// The least number, and a bound of the numbers, of what has a score with this of_score().
  __device__ uint64_t least(uint32_t of_score) const { return uint64_t{of_score} << id_bits_; }
  __device__ uint64_t most(uint32_t of_score) const { return least(of_score) | mask(); }

  /// of_score() of the token's score.
  __device__ uint32_t score_bits(uint64_t number) const { return uint32_t(number >> id_bits_); }
  __device__ float score(uint64_t number) const { return score_of(score_bits(number)); }
  __device__ int32_t id(uint64_t number) const { return int32_t(mask() - (number & mask())); }

 private:
  __device__ uint64_t mask() const { return (uint64_t{1} << id_bits_) - 1; }

  int id_bits_;
};

}  // namespace nibblet
