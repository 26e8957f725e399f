#pragma once

#include <cstddef>

namespace nibblet::emulated {

/// A stack that is switched to and from without a system call: the host thread's own, or one to run a function on.
class Fiber {
 public:
  static constexpr size_t stack_bytes = size_t{256} << 10;

  /// The stack of the host thread that runs.
  Fiber();
  /// @param number different ones start at different offsets of a page, so that their hot lines share a cache
  explicit Fiber(size_t number);
  ~Fiber();
  Fiber(Fiber&& other) noexcept;

  /// Makes the next switch to this fiber call `entry`, which begins with entered() and must not return. What it ran
  /// before is forgotten.
  void prepare(void (*entry)());
  static void entered();
  /// Leaves this fiber, which runs, for another.
  void leave(Fiber& to);

 private:
  static void switch_stack(void** from, void* to) __asm__("nibblet_emulated_switch_stack");

  void* place_ = nullptr;
  char* memory_ = nullptr;  ///< with the page below the stack; none: the stack of the host thread
  const void* bottom_;
  size_t bytes_;
  size_t offset_ = 0;
  void* sanitized_ = nullptr;  ///< the thread sanitizer's own fiber
};

}  // namespace nibblet::emulated
