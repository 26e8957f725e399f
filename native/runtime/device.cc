#include "native/runtime/device.h"

#include <algorithm>
#include <map>

#include "native/runtime/error.h"
#include "native/runtime/host_device.h"
#include "native/runtime/pool.h"
#include "native/runtime/stream.h"
#if NIBBLET_CUDA
#include "native/runtime/cuda/device.h"
#endif

namespace nibblet {

std::shared_ptr<Device> Device::open(const std::string& name) {
  static std::mutex mutex;
  static auto* devices = new std::map<std::string, std::weak_ptr<Device>>;
  std::lock_guard lock(mutex);
  std::shared_ptr<Device> device = (*devices)[name].lock();
  if (device) return device;
  if (name == "cpu") {
    device = std::make_shared<HostDevice>(name);
  } else {
#if NIBBLET_CUDA
    device = open_cuda_device(name);
#else
    throw Error("NO_DEVICE", "this build of nibblet has no device '" + name +
                                 "': it has no GPU code; run `npm run build:cuda`, or use 'cpu'");
#endif
  }
  (*devices)[name] = device;
  return device;
}

int Device::cuda_devices() {
#if NIBBLET_CUDA
  return count_cuda_devices();
#else
  return 0;
#endif
}

Device::Allocation Device::allocate(size_t bytes) {
  const Allocation allocation = take(bytes);
  allocated_.fetch_add(int64_t(allocation.bytes));
  return allocation;
}

void Device::release(const Allocation& allocation) {
  give(allocation);
  allocated_.fetch_sub(int64_t(allocation.bytes));
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
  begin_thread();
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

}  // namespace nibblet
