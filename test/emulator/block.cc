#include "test/emulator/block.h"

#include <bit>
#include <cstdio>
#include <cstring>
#include <map>

#include "test/emulator/control.h"
#include "test/emulator/internal.h"
#include "test/emulator/symbols.h"

NIBBLET_EMULATED_LOCAL uint3 threadIdx;
NIBBLET_EMULATED_LOCAL uint3 blockIdx;
NIBBLET_EMULATED_LOCAL dim3 blockDim;
NIBBLET_EMULATED_LOCAL dim3 gridDim;

namespace nibblet::emulated {

static std::string text_of(uint3 v) {
  char text[48];
  std::snprintf(text, sizeof text, "(%u, %u, %u)", v.x, v.y, v.z);
  return text;
}

static uint32_t reversed(uint32_t bits) {
  uint32_t result = 0;
  for (; bits != 0; bits &= bits - 1) result |= 0x80000000u >> std::countr_zero(bits);
  return result;
}

NIBBLET_EMULATED_LOCAL Processor* Processor::current_;

Processor* Processor::create() {
  static thread_local Processor processor;
  return current_ = &processor;
}

std::string Processor::position() const {
  std::string text = "kernel " + symbol_name(kernel_->function) + ", block " + text_of(blockIdx);
  return running_ == nullptr ? text : text + ", thread " + text_of(running_->index);
}

bool Processor::run(const Kernel& kernel) {
  if (running_ != nullptr) fault("a kernel launches a kernel");
  kernel_ = &kernel;
  failed_ = false;
  reverse_ = configuration().reverse;
  waited_for_predecessor = false;
  blockDim = kernel.shape.block;
  gridDim = kernel.shape.grid;
  threads_ = int(blockDim.x * blockDim.y * blockDim.z);
  prepare_shared(kernel.shape.shared_bytes);
  prepare_threads(threads_);
  const uint64_t blocks = uint64_t(gridDim.x) * gridDim.y * gridDim.z;
  for (uint64_t i = 0; i < blocks && !failed_; ++i) {
    const uint64_t block = reverse_ ? blocks - 1 - i : i;
    blockIdx = {unsigned(block % gridDim.x), unsigned(block / gridDim.x % gridDim.y),
                unsigned(block / gridDim.x / gridDim.y)};
    run_block();
  }
  if (!failed_ && kernel.shape.programmatic_edge && !waited_for_predecessor)
    fault_outside("launched with a programmatic edge, but no thread called grid_dependency_wait");
  kernel_ = nullptr;
  return !failed_;
}

void Processor::prepare_threads(int count) {
  for (int number = int(all_.size()); number < count; ++number) {
    all_.emplace_back(number);
  }
  for (; prepared_ < count; ++prepared_) all_[size_t(prepared_)].fiber.prepare(thread_main);
  for (int number = 0; number < count; ++number) {
    const unsigned n = unsigned(number);
    all_[size_t(number)].index = {n % blockDim.x, n / blockDim.x % blockDim.y, n / blockDim.x / blockDim.y};
  }
}

void Processor::run_block() {
  live_ = threads_;
  idle_turns_ = 0;
  ready_warps_ = 0;
  for (int w = 0; w * 32 < threads_; ++w) {
    const int lanes = std::min(32, threads_ - w * 32);
    warps_[size_t(w)].live = lanes == 32 ? ~0u : (1u << lanes) - 1;
    warps_[size_t(w)].gathering = 0;
    warps_[size_t(w)].ready = 0;
    release(w, warps_[size_t(w)].live);
  }
  for (Barrier& barrier : barriers_) barrier = {};
  poison_shared();
  running_ = &all_[reverse_ ? size_t(threads_ - 1) : 0];
  Thread* first = next();
  running_ = first;
  threadIdx = first->index;
  outside_.leave(first->fiber);
  running_ = nullptr;
  if (failed_) return;
  check_shared();
}

/// Unwinds a thread after a fault.
struct Abandoned {};

void Processor::thread_main() {
  Fiber::entered();
  for (;;) {
    Processor& processor = current();
    try {
      processor.kernel_->body();
      processor.end_thread();
    } catch (const Abandoned&) {
      processor.failed_ = true;
    }
    if (processor.failed_) processor.abandon();
  }
}

void Processor::end_thread() {
  Thread& self = *running_;
  self.copies.clear();
  self.groups.clear();
  self.open_copies = 0;
  Warp& mine = warp();
  mine.live &= ~(1u << (self.number % 32));
  for (uint32_t left = mine.gathering; left != 0; left &= left - 1) {
    Gathering& gathering = mine.gatherings[size_t(std::countr_zero(left))];
    if (gathering.arrived == (gathering.mask & mine.live)) complete(mine, gathering);
  }
  --live_;
  for (Barrier& barrier : barriers_)
    if (barrier.arrived > 0 && barrier.expected == 0 && barrier.arrived == live_) finish_round(barrier);
  idle_turns_ = 0;
  if (live_ == 0) {
    self.fiber.leave(outside_);
    return;
  }
  Thread* to = next();
  if (to == nullptr) deadlock();
  go(to);
}

void Processor::release(int warp, uint32_t lanes) {
  warps_[size_t(warp)].ready |= lanes;
  if (lanes != 0) ready_warps_ |= 1u << warp;
}

/// The warp that runs goes on as long as it can: its stacks are in the cache.
Thread* Processor::next() {
  int index = running_->number / 32;
  if ((ready_warps_ >> index & 1) == 0) {
    if (ready_warps_ == 0) return nullptr;
    const int turn = reverse_ ? 31 - index : index;
    const uint32_t rotated = std::rotr(reverse_ ? reversed(ready_warps_) : ready_warps_, turn);
    index = (std::countr_zero(rotated) + turn) % 32;
    if (reverse_) index = 31 - index;
  }
  Warp& warp = warps_[size_t(index)];
  const int lane = reverse_ ? 31 - std::countl_zero(warp.ready) : std::countr_zero(warp.ready);
  warp.ready &= ~(1u << lane);
  if (warp.ready == 0) ready_warps_ &= ~(1u << index);
  return &all_[size_t(index * 32 + lane)];
}

void Processor::go(Thread* to) {
  Thread* from = running_;
  if (from == to) return;
  running_ = to;
  threadIdx = to->index;
  from->fiber.leave(to->fiber);
}

void Processor::wait(const char* reason, Place where) {
  Thread& self = *running_;
  self.waits_for = reason;
  self.where = where;
  idle_turns_ = 0;
  Thread* to = next();
  if (to == nullptr) deadlock();
  go(to);
  self.waits_for = nullptr;
}

void Processor::yield(Place where) {
  Thread& self = *running_;
  self.waits_for = "another thread, in a loop";
  self.where = where;
  if (++idle_turns_ > 4'000'000) deadlock();
  // Cyclic over the block, so that no two threads pass the turn between them for ever.
  const int count = threads_;
  Thread* to = nullptr;
  for (int step = 1; step < count && to == nullptr; ++step) {
    const int number = (self.number + step) % count;
    Warp& warp = warps_[size_t(number / 32)];
    if (warp.ready == 0) continue;
    if (warp.ready >> (number % 32) & 1) {
      warp.ready &= ~(1u << (number % 32));
      if (warp.ready == 0) ready_warps_ &= ~(1u << (number / 32));
      to = &all_[size_t(number)];
    }
  }
  if (to != nullptr) {
    release(self.number / 32, 1u << (self.number % 32));
    go(to);
  }
  self.waits_for = nullptr;
}

void Processor::deadlock() {
  // All threads that wait for the same thing at the same place make one line.
  std::map<std::string, std::pair<int, int>> reasons;
  for (int number = 0; number < threads_; ++number) {
    const Thread& thread = all_[size_t(number)];
    if ((warps_[size_t(number / 32)].live >> (number % 32) & 1) == 0 || thread.waits_for == nullptr) continue;
    auto& [count, first] = reasons[std::string(thread.waits_for) + " at " + text_of(thread.where)];
    if (count++ == 0) first = number;
  }
  std::string text = "no thread of the block can go on:";
  for (const auto& [reason, threads] : reasons)
    text += "\n  " + std::to_string(threads.first) + " threads, the first of them " +
            std::to_string(threads.second) + ", wait for " + reason;
  if (live_ < threads_) text += "\n  " + std::to_string(threads_ - live_) + " threads ended";
  fault(text);
}

/// The other threads of the block are forgotten where they wait.
void Processor::abandon() {
  prepared_ = 0;
  for (Warp& warp : warps_) warp.gatherings = {};
  for (Thread& thread : all_) {
    thread.waits_for = nullptr;
    thread.copies.clear();
    thread.groups.clear();
    thread.open_copies = 0;
  }
  running_->fiber.leave(outside_);
}

std::string text_of(Place where) {
  return std::string(where.file_name()) + ":" + std::to_string(where.line());
}

bool same(Place a, Place b) {
  return a.line() == b.line() && a.column() == b.column() &&
         (a.file_name() == b.file_name() || std::strcmp(a.file_name(), b.file_name()) == 0);
}

static void record_or_abort(const std::string& message) {
  if (record_fault(message)) return;
  std::fprintf(stderr, "emulated CUDA: %s\n", message.c_str());
  std::abort();
}

void Processor::fault_outside(const std::string& text) {
  record_or_abort(position() + ": " + text);
  failed_ = true;
}

void fault(const std::string& text, Place where) {
  Processor& processor = Processor::current();
  if (!processor.is_running()) {
    std::fprintf(stderr, "emulated CUDA: %s: %s\n", text_of(where).c_str(), text.c_str());
    std::abort();
  }
  record_or_abort(processor.position() + ", " + text_of(where) + ": " + text);
  throw Abandoned();
}

void yield(Place where) { Processor::current().yield(where); }

}  // namespace nibblet::emulated
