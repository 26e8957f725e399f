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

class Stream;

/// A processor that runs streams: the host CPU today. Opened once per process and shared by all Node environments.
/// One engine thread drains its streams, one step of each in turn. The thread exists while a stream is attached.
class Device : public std::enable_shared_from_this<Device> {
 public:
  /// Throws NO_DEVICE for a name that this build does not serve.
  static std::shared_ptr<Device> open(const std::string& name);

  explicit Device(std::string name) : name_(std::move(name)) {}
  const std::string& name() const { return name_; }
  int64_t allocated_bytes() const { return allocated_.load(); }
  void account(int64_t bytes) { allocated_.fetch_add(bytes); }

  /// Streams only. Attach and detach run on threads other than the engine's; detach returns once the engine thread no
  /// longer touches the stream.
  void attach(Stream* stream);
  void detach(Stream* stream);
  void notify();

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

/// Bytes that can be allocated without swapping: what the kernel calls available, or what a control group leaves.
size_t available_memory();

}  // namespace nibblet
