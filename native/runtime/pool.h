#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace nibblet {

/// The process-wide CPU workers. One engine thread at a time runs work on them and takes part itself. Workers spin for some
/// microseconds between phases and then sleep, so an idle pool costs nothing.
class Pool {
 public:
  static Pool& instance();

  /// Runs slices 0..slices-1 on up to `threads` threads (the caller included); each thread takes the next free slice.
  /// Stops handing out slices once `cancelled` reads true. Returns when all handed-out slices are done.
  /// A slice must not throw: kernels do not.
  void run(int threads, int slices, const std::function<void(int)>& slice,
           const std::atomic<bool>* cancelled);

  /// Adds a user of the pool; the last one to leave ends the workers.
  void retain();
  void release();

 private:
  void grow(int workers);
  void stop();
  void work(int index);
  void take(const std::function<void(int)>& slice, int slices, const std::atomic<bool>* cancelled);

  std::mutex lifetime_;
  int users_ = 0;
  std::vector<std::thread> workers_;
  std::atomic<bool> stopping_{false};

  // A phase: entry_ is open while workers may join it and counts those inside. It is over when closed and empty, so nobody
  // waits for a worker that the system has not let run meanwhile. A bump of generation_ wakes the workers.
  std::mutex running_;
  std::atomic<uint32_t> generation_{0};
  std::atomic<uint32_t> entry_{0};
  std::atomic<int> next_{0};
  const std::function<void(int)>* slice_ = nullptr;
  int slices_ = 0;
  int wanted_ = 0;
  const std::atomic<bool>* cancelled_ = nullptr;
};

/// Cores this process may use, hyper-threads counted once.
int physical_cores();

}  // namespace nibblet
