#include "native/runtime/device.h"

#include <algorithm>
#include <fstream>
#include <map>

#include "native/runtime/error.h"
#include "native/runtime/pool.h"
#include "native/runtime/stream.h"

namespace nibblet {

std::shared_ptr<Device> Device::open(const std::string& name) {
  static std::mutex mutex;
  static auto* devices = new std::map<std::string, std::weak_ptr<Device>>;
  if (name != "cpu") throw Error("NO_DEVICE", "this build has no device '" + name + "'; use 'cpu'");
  std::lock_guard lock(mutex);
  std::shared_ptr<Device> device = (*devices)[name].lock();
  if (!device) (*devices)[name] = device = std::make_shared<Device>(name);
  return device;
}

void Device::attach(Stream* stream) {
  std::lock_guard lifetime(lifetime_);
  std::lock_guard lock(mutex_);
  // First, since it is what can fail: nothing is attached then.
  if (!engine_.joinable()) {
    stopping_ = false;
    engine_ = std::thread([this] { drain(); });
  }
  streams_.push_back(stream);
  Pool::instance().retain();
}

void Device::detach(Stream* stream) {
  std::lock_guard lifetime(lifetime_);
  bool last;
  {
    std::unique_lock lock(mutex_);
    std::erase(streams_, stream);
    changed_.wait(lock, [&] { return running_ != stream; });
    last = streams_.empty();
    if (last) stopping_ = true;
    changed_.notify_all();
  }
  if (last) engine_.join();
  Pool::instance().release();
}

void Device::notify() {
  // Taken and dropped so that the engine thread is either before its check of the queues or already waiting.
  {
    std::lock_guard lock(mutex_);
  }
  changed_.notify_all();
}

Stream* Device::next_ready() {
  for (size_t i = 0; i < streams_.size(); ++i) {
    Stream* stream = streams_[(turn_ + i) % streams_.size()];
    if (!stream->ready()) continue;
    turn_ = (turn_ + i + 1) % streams_.size();
    return stream;
  }
  return nullptr;
}

void Device::drain() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [&] { return stopping_ || (running_ = next_ready()) != nullptr; });
    if (running_ == nullptr) return;
    lock.unlock();
    running_->run_one();
    lock.lock();
    running_ = nullptr;
    changed_.notify_all();
  }
}

size_t available_memory() {
  size_t available = SIZE_MAX;
  std::ifstream meminfo("/proc/meminfo");
  for (std::string key; meminfo >> key;) {
    if (key == "MemAvailable:") {
      size_t kilobytes = 0;
      meminfo >> kilobytes;
      available = kilobytes << 10;
      break;
    }
    meminfo.ignore(256, '\n');
  }
  std::ifstream limit_file("/sys/fs/cgroup/memory.max"), used_file("/sys/fs/cgroup/memory.current");
  size_t limit = 0, used = 0;
  if (limit_file >> limit && used_file >> used)
    available = std::min(available, limit > used ? limit - used : 0);
  return available;
}

}  // namespace nibblet
