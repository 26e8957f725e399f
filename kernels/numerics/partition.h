#pragma once

#include <cstdint>

namespace nibblet {

/// The part [first, last) of `total` items that one worker takes: contiguous, in order, sizes within one of another.
struct Range {
  int64_t first;
  int64_t last;
};

constexpr Range partition(int64_t total, int worker, int workers) {
  return {total * worker / workers, total * (worker + 1) / workers};
}

}  // namespace nibblet
