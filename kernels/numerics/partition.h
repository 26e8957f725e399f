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

/// Of `units` units of one cost, above 0, of which the first begins at `start` of a total: those that begin inside a part of it.
constexpr Range units_of(Range part, int64_t start, int64_t cost, int64_t units) {
  const auto at = [&](int64_t place) {
    const int64_t unit = place <= start ? 0 : (place - start + cost - 1) / cost;
    return unit < units ? unit : units;
  };
  return {at(part.first), at(part.last)};
}

}  // namespace nibblet
