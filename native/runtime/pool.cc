#include "native/runtime/pool.h"

#include <sched.h>

#include <algorithm>
#include <fstream>
#include <set>
#include <string>

namespace nibblet {
namespace {

/// Looks before a thread sleeps, about half a millisecond together: a phase of one thread in a prompt of a small model takes a
/// third of that, and the next phase would wait for who has to be woken.
constexpr int kSpins = 10000;
/// Looks, some microseconds together, after which whoever else wants this core has it. Where the threads that compute have all
/// cores, JavaScript receives a step on one of theirs: here and not inside a slice, which the others would wait for.
constexpr int kSpinsPerYield = 64;

// Pool::Phase::state, from the highest bit: number 21, workers that may join 11, workers inside 11, slices left 21.
constexpr int kInsideShift = 21, kHelpersShift = 32, kNumberShift = 43;
constexpr uint64_t kLeft = (uint64_t{1} << kInsideShift) - 1;
constexpr uint64_t kOneInside = uint64_t{1} << kInsideShift;
constexpr uint64_t kInside = ((uint64_t{1} << kHelpersShift) - 1) & ~kLeft;
constexpr int kMostHelpers = (1 << (kNumberShift - kHelpersShift)) - 1;

uint64_t number_of(uint64_t state) { return state >> kNumberShift; }
int helpers_of(uint64_t state) { return int(state >> kHelpersShift) & kMostHelpers; }

void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  // Waits for what was issued: YIELD does nothing on most cores.
  __asm__ volatile("isb");
#else
  std::this_thread::yield();
#endif
}

/// Waits for ready() to hold: for a while by looking, then asleep until somebody who made it hold calls wake().
template <class Sleep, class Ready>
void wait_for(Sleep& sleep, Ready ready) {
  for (int spin = 1; spin <= kSpins; ++spin) {
    if (ready()) return;
    relax();
    if (spin % kSpinsPerYield == 0) sched_yield();
  }
  // Either this sees what the other did, or the other sees a sleeper: both first write, then read.
  sleep.sleepers.fetch_add(1);
  for (uint32_t heard = sleep.bell.load(); !ready(); heard = sleep.bell.load()) sleep.bell.wait(heard);
  sleep.sleepers.fetch_sub(1);
}

template <class Sleep>
void wake(Sleep& sleep) {
  if (sleep.sleepers.load() == 0) return;
  sleep.bell.fetch_add(1);
  sleep.bell.notify_all();
}

}  // namespace

Pool& Pool::instance() {
  // Never destroyed: at exit an engine thread may still be inside run().
  static Pool* pool = new Pool;
  return *pool;
}

void Pool::retain() {
  std::lock_guard lock(lifetime_);
  ++users_;
}

void Pool::release() {
  std::lock_guard lock(lifetime_);
  if (--users_ == 0) stop();
}

void Pool::stop() {
  std::lock_guard lock(running_);
  stopping_.store(true);
  wake(workers_asleep_);
  for (std::thread& worker : workers_) worker.join();
  workers_.clear();
  stopping_.store(false);
}

void Pool::grow(int workers) {
  while (static_cast<int>(workers_.size()) < workers) {
    int index = static_cast<int>(workers_.size());
    workers_.emplace_back([this, index] { work(index); });
  }
}

/// Takes a slice of a phase for worker `index`, if one is free and the phase wants that many, and leaves in
/// `state` what it wrote. `entering` is what else is added.
bool Pool::claim(uint64_t& state, int index, uint64_t entering) {
  while ((state & kLeft) != 0 && index < helpers_of(state)) {
    const uint64_t taken = state - 1 + entering;
    if (phase_.state.compare_exchange_weak(state, taken)) {
      state = taken;
      return true;
    }
  }
  return false;
}

void Pool::work(int index) {
  // Not the number of a phase: this worker may take part in the one that it was made for.
  uint64_t seen = ~uint64_t{0};
  for (;;) {
    uint64_t state;
    wait_for(workers_asleep_, [&] {
      state = phase_.state.load();
      return number_of(state) != seen || stopping_.load();
    });
    if (stopping_.load()) return;
    const bool inside = claim(state, index, kOneInside);
    seen = number_of(state);
    if (!inside) continue;
    // From here on the phase's fields stay as they are.
    do {
      if (phase_.cancelled && phase_.cancelled->load(std::memory_order_relaxed)) break;
      (*phase_.slice)(phase_.slices - 1 - int(state & kLeft));
      state = phase_.state.load();
    } while (claim(state, index, 0));
    if ((phase_.state.fetch_sub(kOneInside) & kInside) == kOneInside) wake(caller_asleep_);
  }
}

void Pool::run(int threads, int slices, SliceFunction slice, const std::atomic<bool>* cancelled) {
  std::lock_guard lock(running_);
  const auto stopped = [&] { return cancelled && cancelled->load(std::memory_order_relaxed); };
  const int helpers = std::min({threads, slices, kMostHelpers + 1}) - 1;
  if (helpers <= 0) {
    for (int i = 0; i < slices && !stopped(); ++i) slice(i);
    return;
  }
  if (stopped()) return;
  grow(helpers);
  phase_.slice = &slice;
  phase_.slices = slices;
  phase_.cancelled = cancelled;
  // The first slice is the caller's. Counting on from the last number tells the workers that this is another phase.
  const uint64_t last = phase_.state.load();
  uint64_t state =
      (number_of(last) + 1) << kNumberShift | uint64_t(helpers) << kHelpersShift | uint64_t(slices - 1);
  phase_.state.exchange(state);
  wake(workers_asleep_);
  do {
    slice(slices - 1 - int(state & kLeft));
    if (stopped()) {
      phase_.state.fetch_and(~kLeft);
      break;
    }
    state = phase_.state.load();
  } while (claim(state, 0, 0));
  wait_for(caller_asleep_, [&] { return (phase_.state.load() & kInside) == 0; });
}

int physical_cores() {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0)
    return std::max(1u, std::thread::hardware_concurrency());
  std::set<std::string> cores;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &allowed)) continue;
    std::ifstream file("/sys/devices/system/cpu/cpu" + std::to_string(cpu) +
                       "/topology/thread_siblings_list");
    std::string siblings;
    if (!std::getline(file, siblings)) siblings = std::to_string(cpu);
    cores.insert(siblings);
  }
  return std::max<int>(1, static_cast<int>(cores.size()));
}

}  // namespace nibblet
