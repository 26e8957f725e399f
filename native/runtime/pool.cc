#include "native/runtime/pool.h"

#include <sched.h>

#include <algorithm>
#include <fstream>
#include <set>
#include <string>

namespace nibblet {
namespace {

constexpr int kSpins = 2000;
// The bit of Pool::entry_ above the count of workers inside.
constexpr uint32_t kOpen = 1u << 31;

void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#else
  std::this_thread::yield();
#endif
}

template <class Value>
Value wait_while(const std::atomic<Value>& value, Value old) {
  for (int spin = 0; spin < kSpins; ++spin) {
    Value now = value.load(std::memory_order_acquire);
    if (now != old) return now;
    relax();
  }
  value.wait(old, std::memory_order_acquire);
  return value.load(std::memory_order_acquire);
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
  generation_.fetch_add(1);
  generation_.notify_all();
  for (std::thread& worker : workers_) worker.join();
  workers_.clear();
  stopping_.store(false);
}

void Pool::grow(int workers) {
  while (static_cast<int>(workers_.size()) < workers) {
    int index = static_cast<int>(workers_.size());
    // The worker must see a stop that comes after this point, hence the generation is read here and not in the thread.
    uint32_t seen = generation_.load();
    workers_.emplace_back([this, index, seen] {
      uint32_t last = seen;
      for (;;) {
        last = wait_while(generation_, last);
        if (stopping_.load()) return;
        work(index);
      }
    });
  }
}

void Pool::work(int index) {
  uint32_t entry = entry_.load(std::memory_order_acquire);
  do {
    if ((entry & kOpen) == 0) return;
  } while (!entry_.compare_exchange_weak(entry, entry + 1, std::memory_order_acquire));
  // Inside, the phase's fields stay as they are.
  if (index < wanted_) take(*slice_, slices_, cancelled_);
  if (entry_.fetch_sub(1, std::memory_order_acq_rel) == 1) entry_.notify_all();
}

void Pool::take(const std::function<void(int)>& slice, int slices, const std::atomic<bool>* cancelled) {
  for (;;) {
    if (cancelled && cancelled->load(std::memory_order_relaxed)) return;
    int index = next_.fetch_add(1, std::memory_order_relaxed);
    if (index >= slices) return;
    slice(index);
  }
}

void Pool::run(int threads, int slices, const std::function<void(int)>& slice,
               const std::atomic<bool>* cancelled) {
  std::lock_guard lock(running_);
  int helpers = std::min(threads, slices) - 1;
  if (helpers <= 0) {
    next_.store(0, std::memory_order_relaxed);
    take(slice, slices, cancelled);
    return;
  }
  grow(threads - 1);
  slice_ = &slice;
  slices_ = slices;
  cancelled_ = cancelled;
  wanted_ = helpers;
  next_.store(0, std::memory_order_relaxed);
  entry_.store(kOpen, std::memory_order_release);
  generation_.fetch_add(1, std::memory_order_acq_rel);
  generation_.notify_all();
  take(slice, slices, cancelled);
  uint32_t inside = entry_.fetch_and(~kOpen, std::memory_order_acq_rel) & ~kOpen;
  while (inside != 0) inside = wait_while(entry_, inside);
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
