#pragma once

#include <bit>
#include <cstdint>

// Blocks of one launch run on one host thread, but two host threads may launch at once: these are atomic for both.
namespace nibblet::emulated {

template <class T, class Change>
T atomic_change(T* address, Change change) {
  T old = __atomic_load_n(address, __ATOMIC_RELAXED);
  while (!__atomic_compare_exchange_n(address, &old, T(change(old)), false, __ATOMIC_SEQ_CST,
                                      __ATOMIC_RELAXED)) {
  }
  return old;
}

template <class F, class Bits, class Change>
F atomic_change_float(F* address, Change change) {
  static_assert(sizeof(F) == sizeof(Bits));
  auto bits = reinterpret_cast<__attribute__((may_alias)) Bits*>(address);
  Bits old = __atomic_load_n(bits, __ATOMIC_RELAXED);
  while (!__atomic_compare_exchange_n(bits, &old, std::bit_cast<Bits>(F(change(std::bit_cast<F>(old)))),
                                      false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED)) {
  }
  return std::bit_cast<F>(old);
}

}  // namespace nibblet::emulated

#define NIBBLET_EMULATED_ATOMICS(T)                                                                          \
  inline T atomicAdd(T* address, T value) { return __atomic_fetch_add(address, value, __ATOMIC_SEQ_CST); }   \
  inline T atomicAnd(T* address, T value) { return __atomic_fetch_and(address, value, __ATOMIC_SEQ_CST); }   \
  inline T atomicOr(T* address, T value) { return __atomic_fetch_or(address, value, __ATOMIC_SEQ_CST); }     \
  inline T atomicXor(T* address, T value) { return __atomic_fetch_xor(address, value, __ATOMIC_SEQ_CST); }   \
  inline T atomicExch(T* address, T value) { return __atomic_exchange_n(address, value, __ATOMIC_SEQ_CST); } \
  inline T atomicMin(T* address, T value) {                                                                  \
    return nibblet::emulated::atomic_change(address, [=](T old) { return old < value ? old : value; });      \
  }                                                                                                          \
  inline T atomicMax(T* address, T value) {                                                                  \
    return nibblet::emulated::atomic_change(address, [=](T old) { return old > value ? old : value; });      \
  }                                                                                                          \
  inline T atomicCAS(T* address, T expected, T value) {                                                      \
    __atomic_compare_exchange_n(address, &expected, value, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);       \
    return expected;                                                                                         \
  }
NIBBLET_EMULATED_ATOMICS(int)
NIBBLET_EMULATED_ATOMICS(unsigned)
NIBBLET_EMULATED_ATOMICS(unsigned long long)
#undef NIBBLET_EMULATED_ATOMICS

inline int atomicSub(int* address, int value) { return __atomic_fetch_sub(address, value, __ATOMIC_SEQ_CST); }
inline unsigned atomicSub(unsigned* address, unsigned value) {
  return __atomic_fetch_sub(address, value, __ATOMIC_SEQ_CST);
}
inline unsigned atomicInc(unsigned* address, unsigned last) {
  return nibblet::emulated::atomic_change(address, [=](unsigned old) { return old >= last ? 0 : old + 1; });
}
inline unsigned atomicDec(unsigned* address, unsigned last) {
  return nibblet::emulated::atomic_change(
      address, [=](unsigned old) { return old == 0 || old > last ? last : old - 1; });
}
inline float atomicAdd(float* address, float value) {
  return nibblet::emulated::atomic_change_float<float, uint32_t>(address,
                                                                 [=](float old) { return old + value; });
}
inline double atomicAdd(double* address, double value) {
  return nibblet::emulated::atomic_change_float<double, uint64_t>(address,
                                                                  [=](double old) { return old + value; });
}
inline float atomicExch(float* address, float value) {
  return nibblet::emulated::atomic_change_float<float, uint32_t>(address, [=](float) { return value; });
}

inline void __threadfence() {
#ifndef __SANITIZE_THREAD__  // which knows no fences; the atomic operations here order as much
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
#endif
}
inline void __threadfence_block() { __threadfence(); }
inline void __threadfence_system() { __threadfence(); }
