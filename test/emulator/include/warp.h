#pragma once

#include <bit>
#include <cstdint>
#include <type_traits>

#include "test/emulator/include/thread.h"

namespace nibblet::emulated {

enum class Collective { sync, shuffle, vote, match, reduce, mma, ldmatrix };

/// What a lane brings to a collective, and where its result goes; both on the lane's stack.
struct Lane {
  const void* in;
  void* out;
};

/// Runs once for all lanes of `arrived`, whose entries of `lanes` [32] are set.
using Combine = void (*)(const Lane* lanes, uint32_t arrived);

/// Waits until every lane of `mask` that has not ended came to the same place with the same mask.
void collective(Collective kind, uint32_t mask, const void* in, void* out, Combine combine, Place where);

uint32_t live_lanes();
int lane_index();
[[noreturn]] void fault_of_lane(int lane, const std::string& text);

template <class T>
struct Shuffled {
  T value;
  int source;
};

template <class T>
T shuffle(uint32_t mask, T value, int source, Place where) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8),
                "CUDA shuffles values of 4 or 8 bytes");
  const Shuffled<T> in{value, source};
  T out;
  auto combine = [](const Lane* lanes, uint32_t arrived) {
    for (uint32_t left = arrived; left != 0; left &= left - 1) {
      const int lane = std::countr_zero(left);
      const int from = static_cast<const Shuffled<T>*>(lanes[lane].in)->source;
      if ((arrived >> from & 1) == 0)
        fault_of_lane(lane,
                      "shuffles from lane " + std::to_string(from) + ", which takes no part in the shuffle");
      *static_cast<T*>(lanes[lane].out) = static_cast<const Shuffled<T>*>(lanes[from].in)->value;
    }
  };
  collective(Collective::shuffle, mask, &in, &out, combine, where);
  return out;
}

void check_width(int width, Place where);

template <class T, class Operation>
T reduce(uint32_t mask, T value, Operation, Place where) {
  static_assert(std::is_same_v<T, int> || std::is_same_v<T, unsigned>,
                "CUDA reduces 32-bit integers over a warp");
  T out;
  auto combine = [](const Lane* lanes, uint32_t arrived) {
    T result = *static_cast<const T*>(lanes[std::countr_zero(arrived)].in);
    for (uint32_t left = arrived & (arrived - 1); left != 0; left &= left - 1)
      result = Operation{}(result, *static_cast<const T*>(lanes[std::countr_zero(left)].in));
    for (uint32_t left = arrived; left != 0; left &= left - 1)
      *static_cast<T*>(lanes[std::countr_zero(left)].out) = result;
  };
  collective(Collective::reduce, mask, &value, &out, combine, where);
  return out;
}

template <class T>
using Promoted = decltype(+T{});

struct Add {
  int operator()(int a, int b) const { return int(unsigned(a) + unsigned(b)); }
  unsigned operator()(unsigned a, unsigned b) const { return a + b; }
};
struct Min {
  template <class T>
  T operator()(T a, T b) const {
    return b < a ? b : a;
  }
};
struct Max {
  template <class T>
  T operator()(T a, T b) const {
    return a < b ? b : a;
  }
};
struct And {
  unsigned operator()(unsigned a, unsigned b) const { return a & b; }
};
struct Or {
  unsigned operator()(unsigned a, unsigned b) const { return a | b; }
};
struct Xor {
  unsigned operator()(unsigned a, unsigned b) const { return a ^ b; }
};

uint32_t ballot(uint32_t mask, bool predicate, Place where);

}  // namespace nibblet::emulated

inline void __syncwarp(unsigned mask = 0xffffffffu,
                       nibblet::emulated::Place where = nibblet::emulated::Place::current()) {
  nibblet::emulated::collective(nibblet::emulated::Collective::sync, mask, nullptr, nullptr, nullptr, where);
}

template <class T>
auto __shfl_sync(unsigned mask, T value, int lane, int width = 32,
                 nibblet::emulated::Place where = nibblet::emulated::Place::current()) {
  nibblet::emulated::check_width(width, where);
  const int self = nibblet::emulated::lane_index();
  const int source = (self & ~(width - 1)) + (lane & (width - 1));
  return nibblet::emulated::shuffle<nibblet::emulated::Promoted<T>>(mask, value, source, where);
}
template <class T>
auto __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                    nibblet::emulated::Place where = nibblet::emulated::Place::current()) {
  nibblet::emulated::check_width(width, where);
  const int self = nibblet::emulated::lane_index();
  const int source = delta <= unsigned(self & (width - 1)) ? self - int(delta) : self;
  return nibblet::emulated::shuffle<nibblet::emulated::Promoted<T>>(mask, value, source, where);
}
template <class T>
auto __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                      nibblet::emulated::Place where = nibblet::emulated::Place::current()) {
  nibblet::emulated::check_width(width, where);
  const int self = nibblet::emulated::lane_index();
  const int source = delta < unsigned(width - (self & (width - 1))) ? self + int(delta) : self;
  return nibblet::emulated::shuffle<nibblet::emulated::Promoted<T>>(mask, value, source, where);
}
template <class T>
auto __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32,
                     nibblet::emulated::Place where = nibblet::emulated::Place::current()) {
  nibblet::emulated::check_width(width, where);
  const int self = nibblet::emulated::lane_index();
  // A lane reads earlier segments, but not later ones.
  const int other = (self ^ bits) & 31;
  const int source = other < (self | (width - 1)) + 1 ? other : self;
  return nibblet::emulated::shuffle<nibblet::emulated::Promoted<T>>(mask, value, source, where);
}

inline unsigned __ballot_sync(unsigned mask, int predicate,
                              nibblet::emulated::Place where = nibblet::emulated::Place::current()) {
  return nibblet::emulated::ballot(mask, predicate != 0, where);
}
inline int __any_sync(unsigned mask, int predicate,
                      nibblet::emulated::Place where = nibblet::emulated::Place::current()) {
  return nibblet::emulated::ballot(mask, predicate != 0, where) != 0;
}
inline int __all_sync(unsigned mask, int predicate,
                      nibblet::emulated::Place where = nibblet::emulated::Place::current()) {
  return nibblet::emulated::ballot(mask, predicate == 0, where) == 0;
}
/// All lanes that have not ended: where a warp diverges, the hardware may answer with fewer.
inline unsigned __activemask() { return nibblet::emulated::live_lanes(); }

template <class T>
unsigned __match_any_sync(unsigned mask, T value,
                          nibblet::emulated::Place where = nibblet::emulated::Place::current()) {
  using nibblet::emulated::Lane;
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8));
  unsigned out;
  auto combine = [](const Lane* lanes, uint32_t arrived) {
    for (uint32_t left = arrived; left != 0; left &= left - 1) {
      const Lane& lane = lanes[std::countr_zero(left)];
      unsigned same = 0;
      for (uint32_t others = arrived; others != 0; others &= others - 1) {
        const int other = std::countr_zero(others);
        if (*static_cast<const T*>(lanes[other].in) == *static_cast<const T*>(lane.in)) same |= 1u << other;
      }
      *static_cast<unsigned*>(lane.out) = same;
    }
  };
  nibblet::emulated::collective(nibblet::emulated::Collective::match, mask, &value, &out, combine, where);
  return out;
}

#define NIBBLET_EMULATED_REDUCTION(name, T, Operation)                                                    \
  inline T __reduce_##name##_sync(unsigned mask, T value,                                                 \
                                  nibblet::emulated::Place where = nibblet::emulated::Place::current()) { \
    return nibblet::emulated::reduce(mask, value, nibblet::emulated::Operation{}, where);                 \
  }
NIBBLET_EMULATED_REDUCTION(add, int, Add)
NIBBLET_EMULATED_REDUCTION(add, unsigned, Add)
NIBBLET_EMULATED_REDUCTION(min, int, Min)
NIBBLET_EMULATED_REDUCTION(min, unsigned, Min)
NIBBLET_EMULATED_REDUCTION(max, int, Max)
NIBBLET_EMULATED_REDUCTION(max, unsigned, Max)
NIBBLET_EMULATED_REDUCTION(and, unsigned, And)
NIBBLET_EMULATED_REDUCTION(or, unsigned, Or)
NIBBLET_EMULATED_REDUCTION(xor, unsigned, Xor)
#undef NIBBLET_EMULATED_REDUCTION
