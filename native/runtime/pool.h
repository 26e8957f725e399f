#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace nibblet {

/// Something that is called with the index of a slice. Refers to the callable that it was made from, and allocates nothing:
/// a step has a hundred phases of a few microseconds.
class SliceFunction {
 public:
  template <class Body>
  SliceFunction(const Body& body)  // NOLINT: implicit, so that a lambda can be passed
      : body_(&body), call_([](const void* self, int slice) { (*static_cast<const Body*>(self))(slice); }) {}
  void operator()(int slice) const { call_(body_, slice); }

 private:
  const void* body_;
  void (*call_)(const void*, int);
};

/// The process-wide CPU workers. One engine thread at a time runs work on them and takes part itself. Workers look
/// for the next phase for half a millisecond, giving their core to whoever else wants it, and then sleep: an idle pool costs nothing.
class Pool {
 public:
  static Pool& instance();

  /// Runs slices 0..slices-1 on up to `threads` threads (the caller included); each thread takes the next free slice.
  /// Stops handing out slices once `cancelled` reads true. Returns when all handed-out slices are done.
  /// A slice must not throw: kernels do not.
  /// @param slices  at most 2²¹
  void run(int threads, int slices, SliceFunction slice, const std::atomic<bool>* cancelled);

  /// Adds a user of the pool; the last one to leave ends the workers.
  void retain();
  void release();

 private:
  void grow(int workers);
  void stop();
  void work(int index);
  bool claim(uint64_t& state, int index, uint64_t entering);

  std::mutex lifetime_;
  int users_ = 0;
  std::vector<std::thread> workers_;
  std::atomic<bool> stopping_{false};
  std::mutex running_;

  // A phase is one word: its number, how many workers may join, how many are inside, and the slices that nobody has taken.
  // Workers enter by taking a slice. It is over once none is left and nobody is inside, so nobody waits for a worker that the
  // system has not let run meanwhile; the other fields change only then. Apart from what sleepers touch, and from other data.
  struct alignas(64) Phase {
    std::atomic<uint64_t> state{0};
    const SliceFunction* slice = nullptr;
    int slices = 0;
    const std::atomic<bool>* cancelled = nullptr;
  };
  struct alignas(64) Sleep {
    std::atomic<uint32_t> bell{0};
    std::atomic<int> sleepers{0};
  };
  Phase phase_;
  Sleep workers_asleep_;
  Sleep caller_asleep_;
};

/// Cores this process may use, hyper-threads counted once.
int physical_cores();

}  // namespace nibblet
