#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "test/emulator/fiber.h"
#include "test/emulator/include/launch.h"
#include "test/emulator/include/warp.h"

namespace nibblet::emulated {

std::string text_of(Place where);
bool same(Place a, Place b);

struct PendingCopy {
  void* to;
  const void* from;
  size_t bytes;
};

/// What a switch touches stands in its first cache line.
struct alignas(64) Thread {
  explicit Thread(int number) : fiber(size_t(number)), number(number) {}
  Fiber fiber;
  uint3 index{};
  int number;
  const char* waits_for = nullptr;  ///< none: ready or ended
  Place where;
  std::vector<PendingCopy> copies;  ///< cp.async, the earliest first
  std::vector<size_t> groups;       ///< for each group under way, how many of `copies` belong to it
  size_t open_copies = 0;           ///< at the end of `copies`, in no group yet
};

/// Lanes of a warp that wait for each other. One for each lowest lane of a mask.
struct Gathering {
  uint32_t mask = 0;
  uint32_t arrived = 0;
  Collective kind;
  Place where;
  Combine combine;
};

struct Warp {
  uint32_t ready = 0;
  uint32_t live = 0;
  uint32_t gathering = 0;  ///< which of `gatherings` lanes wait in
  std::array<Gathering, 32> gatherings;
  std::array<Lane, 32> lanes;
};

struct Barrier {
  int arrived = 0;
  int expected = 0;
  BarrierVote vote;
  Place where;
  std::array<uint32_t, 32> waiting{};  ///< lanes of each warp
  int votes = 0;
  uint32_t round = 0;
  std::array<int, 2> results{};  ///< of even and of odd rounds: one is read while the next gathers
};

/// Runs the blocks of launches of one host thread, one after another, each thread of a block on its own fiber.
class Processor {
 public:
  static Processor& current() { return *(current_ != nullptr ? current_ : create()); }
  Processor() { all_.reserve(1024); }
  ~Processor();

  /// @return false after a fault that a FaultRecorder took
  bool run(const Kernel& kernel);

  Thread& thread() { return *running_; }
  Warp& warp() { return warps_[size_t(running_->number) / 32]; }
  bool is_running() const { return running_ != nullptr; }
  /// "kernel …, block …, thread …"
  std::string position() const;

  void wait(const char* reason, Place where);
  void yield(Place where);
  void release(int warp, uint32_t lanes);
  int barrier(int id, int threads, BarrierVote vote, bool predicate, Place where);
  void complete(Warp& warp, Gathering& gathering);
  /// As fault(), between blocks.
  void fault_outside(const std::string& text);

  char* shared() { return shared_; }
  size_t shared_bytes() const { return kernel_->shape.shared_bytes; }
  bool waited_for_predecessor = false;  ///< in the latest launch

 private:
  static NIBBLET_EMULATED_LOCAL Processor* current_;
  static Processor* create();
  static void thread_main();
  void run_block();
  void prepare_shared(size_t bytes);
  void poison_shared();
  void check_shared();
  void prepare_threads(int count);
  void end_thread();
  void abandon();
  Thread* next();
  void go(Thread* to);
  void finish_round(Barrier& barrier);
  [[noreturn]] void deadlock();

  const Kernel* kernel_ = nullptr;
  Thread* running_ = nullptr;
  Fiber outside_;  ///< what run() is called on
  bool failed_ = false;
  bool reverse_ = false;
  int live_ = 0;
  int threads_ = 0;
  int prepared_ = 0;  ///< so many fibers stand at the end of thread_main's loop
  int64_t idle_turns_ = 0;
  uint32_t ready_warps_ = 0;
  std::vector<Thread> all_;
  std::array<Warp, 32> warps_;
  std::array<Barrier, 16> barriers_;
  char* shared_ = nullptr;  ///< of the running kernel, towards the end of shared_memory_
  char* shared_memory_ = nullptr;
};

}  // namespace nibblet::emulated
