#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace nibblet {

class Executor;
class Stream;
struct CudaTarget;

/// A processor that runs streams: the host CPU, or a GPU. Opened once per process and shared by all Node environments.
/// One engine thread drains its streams, one step of each in turn. The thread exists while a stream is attached.
class Device : public std::enable_shared_from_this<Device> {
 public:
  /// Throws NO_DEVICE, saying why, for a device that this build or this machine does not have.
  static std::shared_ptr<Device> open(const std::string& name);
  /// GPUs that this build can use the driver of; 0 for a build or a machine without.
  static int cuda_devices();

  explicit Device(std::string name) : name_(std::move(name)) {}
  virtual ~Device() = default;
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;
  const std::string& name() const { return name_; }
  /// What the maker calls it; for messages and benchmarks.
  virtual std::string model() const = 0;

  struct Allocation {
    uint8_t* data;
    size_t bytes;  ///< of the system's, at least what was asked for
  };
  /// Zeroed memory, at least 64-byte aligned; large pieces in huge pages where the system grants them. Throws OUT_OF_MEMORY.
  Allocation allocate(size_t bytes);
  void release(const Allocation& allocation);
  /// Copies from the host to memory of the device that nothing enqueued uses yet.
  virtual void write(void* to, const void* from, size_t bytes) = 0;
  int64_t allocated_bytes() const { return allocated_.load(); }
  /// Bytes that can be allocated still.
  virtual size_t available_bytes() const = 0;

  /// Where the commands of a stream run.
  virtual std::unique_ptr<Executor> executor(int threads) = 0;
  /// What CUDA kernels are planned for; null on the host.
  virtual const CudaTarget* cuda() const { return nullptr; }

  /// Streams only. Attach and detach run on threads other than the engine's; detach returns once the engine thread no
  /// longer touches the stream.
  void attach(Stream* stream);
  void detach(Stream* stream);
  void notify();

 protected:
  virtual Allocation take(size_t bytes) = 0;
  virtual void give(const Allocation& allocation) = 0;
  /// Around the life of the engine thread.
  virtual void begin_thread() {}

 private:
  void drain();
  Stream* next_ready();

  const std::string name_;
  std::atomic<int64_t> allocated_{0};

  std::mutex lifetime_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Stream*> streams_;
  size_t turn_ = 0;
  Stream* running_ = nullptr;
  bool stopping_ = false;
  std::thread engine_;
};

}  // namespace nibblet
