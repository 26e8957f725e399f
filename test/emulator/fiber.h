#pragma once

#include <cstddef>

namespace nibblet::emulated {

/// A stack of its own to run a function on, switched without a system call.
class Fiber {
 public:
  static constexpr size_t stack_bytes = size_t{256} << 10;

  /// @param number different ones start at different offsets of a page, so that their hot lines share a cache
  explicit Fiber(size_t number);
  ~Fiber();
  Fiber(Fiber&& other) noexcept;

  /// Makes the next switch to this fiber call `entry`, which must not return. What it ran before is forgotten.
  void prepare(void (*entry)());
  /// Leaves the running stack, whose place goes to `from`, for this fiber.
  void enter(void** from) { switch_stack(from, place_); }
  void leave(Fiber& to) { switch_stack(&place_, to.place_); }
  void leave(void* to) { switch_stack(&place_, to); }

 private:
  static void switch_stack(void** from, void* to) __asm__("nibblet_emulated_switch_stack");

  void* place_ = nullptr;
  char* memory_;
  size_t offset_;
};

}  // namespace nibblet::emulated
