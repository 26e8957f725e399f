#include "test/emulator/fiber.h"

#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <new>
#include <utility>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef __SANITIZE_THREAD__
#include <sanitizer/tsan_interface.h>
#endif

namespace nibblet::emulated {

// Saves the registers that a call keeps on the running stack and its top in *from, then goes on where `to` was left.
#if defined(__x86_64__)
__asm__(
    ".text\n"
    ".p2align 4\n"
    ".hidden nibblet_emulated_switch_stack\n"
    ".globl nibblet_emulated_switch_stack\n"
    ".type nibblet_emulated_switch_stack, @function\n"
    "nibblet_emulated_switch_stack:\n"
    "  push %rbp\n"
    "  push %rbx\n"
    "  push %r12\n"
    "  push %r13\n"
    "  push %r14\n"
    "  push %r15\n"
    "  mov %rsp, (%rdi)\n"
    "  mov %rsi, %rsp\n"
    "  pop %r15\n"
    "  pop %r14\n"
    "  pop %r13\n"
    "  pop %r12\n"
    "  pop %rbx\n"
    "  pop %rbp\n"
    "  ret\n"
    ".size nibblet_emulated_switch_stack, . - nibblet_emulated_switch_stack\n");
constexpr int saved_words = 6, entry_word = 6;
#elif defined(__aarch64__)
__asm__(
    ".text\n"
    ".p2align 4\n"
    ".hidden nibblet_emulated_switch_stack\n"
    ".globl nibblet_emulated_switch_stack\n"
    ".type nibblet_emulated_switch_stack, %function\n"
    "nibblet_emulated_switch_stack:\n"
    "  sub sp, sp, #160\n"
    "  stp x19, x20, [sp]\n"
    "  stp x21, x22, [sp, #16]\n"
    "  stp x23, x24, [sp, #32]\n"
    "  stp x25, x26, [sp, #48]\n"
    "  stp x27, x28, [sp, #64]\n"
    "  stp x29, x30, [sp, #80]\n"
    "  stp d8, d9, [sp, #96]\n"
    "  stp d10, d11, [sp, #112]\n"
    "  stp d12, d13, [sp, #128]\n"
    "  stp d14, d15, [sp, #144]\n"
    "  mov x9, sp\n"
    "  str x9, [x0]\n"
    "  mov sp, x1\n"
    "  ldp x19, x20, [sp]\n"
    "  ldp x21, x22, [sp, #16]\n"
    "  ldp x23, x24, [sp, #32]\n"
    "  ldp x25, x26, [sp, #48]\n"
    "  ldp x27, x28, [sp, #64]\n"
    "  ldp x29, x30, [sp, #80]\n"
    "  ldp d8, d9, [sp, #96]\n"
    "  ldp d10, d11, [sp, #112]\n"
    "  ldp d12, d13, [sp, #128]\n"
    "  ldp d14, d15, [sp, #144]\n"
    "  add sp, sp, #160\n"
    "  ret\n"
    ".size nibblet_emulated_switch_stack, . - nibblet_emulated_switch_stack\n");
constexpr int saved_words = 20, entry_word = 11;
#else
#error "The emulator switches stacks on x86-64 and aarch64 only"
#endif

static size_t page_bytes() {
  static const size_t bytes = size_t(sysconf(_SC_PAGESIZE));
  return bytes;
}

Fiber::Fiber() {
  pthread_attr_t attributes;
  void* bottom = nullptr;
  bytes_ = 0;
  if (pthread_getattr_np(pthread_self(), &attributes) == 0) {
    pthread_attr_getstack(&attributes, &bottom, &bytes_);
    pthread_attr_destroy(&attributes);
  }
  bottom_ = bottom;
#ifdef __SANITIZE_THREAD__
  sanitized_ = __tsan_get_current_fiber();
#endif
}

Fiber::Fiber(size_t number) : bytes_(stack_bytes), offset_(number * 5 % 32 * 128) {
  // The page below the stack stays without access: a stack that overflows crashes there.
  const size_t total = page_bytes() + stack_bytes;
  void* memory = mmap(nullptr, total, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  memory_ = static_cast<char*>(memory);
  bottom_ = memory_ + page_bytes();
  if (mprotect(memory_ + page_bytes(), stack_bytes, PROT_READ | PROT_WRITE) != 0) {
    munmap(memory_, total);
    throw std::bad_alloc();
  }
#ifdef __SANITIZE_THREAD__
  sanitized_ = __tsan_create_fiber(0);
#endif
}

Fiber::Fiber(Fiber&& other) noexcept
    : place_(other.place_),
      memory_(std::exchange(other.memory_, nullptr)),
      bottom_(other.bottom_),
      bytes_(other.bytes_),
      offset_(other.offset_),
      sanitized_(other.sanitized_) {}

Fiber::~Fiber() {
  if (memory_ == nullptr) return;
#ifdef __SANITIZE_THREAD__
  __tsan_destroy_fiber(sanitized_);
#endif
  munmap(memory_, page_bytes() + stack_bytes);
}

void Fiber::prepare(void (*entry)()) {
#ifdef __SANITIZE_ADDRESS__
  __asan_unpoison_memory_region(bottom_, bytes_);
#endif
  // As if `entry` had just been called: x86-64 expects the top to be 8 beyond a multiple of 16 then.
  auto top = reinterpret_cast<uint64_t*>(memory_ + page_bytes() + stack_bytes - 256 - offset_);
#if defined(__x86_64__)
  uint64_t* place = top - 1 - 1 - saved_words;
#else
  uint64_t* place = top - saved_words;
#endif
  std::memset(place, 0, size_t(top - place) * sizeof(uint64_t));
  place[entry_word] = reinterpret_cast<uint64_t>(entry);
  place_ = place;
}

void Fiber::entered() {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
}

#ifdef __SANITIZE_THREAD__
__attribute__((no_sanitize("thread")))
#endif
void Fiber::leave(Fiber& to) {
#ifdef __SANITIZE_THREAD__
  __tsan_switch_to_fiber(to.sanitized_, 0);
#endif
#ifdef __SANITIZE_ADDRESS__
  void* frames = nullptr;
  __sanitizer_start_switch_fiber(&frames, to.bottom_, to.bytes_);
  switch_stack(&place_, to.place_);
  __sanitizer_finish_switch_fiber(frames, nullptr, nullptr);
#else
  switch_stack(&place_, to.place_);
#endif
}

}  // namespace nibblet::emulated
