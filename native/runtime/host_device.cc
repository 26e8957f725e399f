#include "native/runtime/host_device.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <fstream>

#include "native/runtime/error.h"
#include "native/runtime/host_executor.h"
#include "native/runtime/poison.h"

namespace nibblet {
namespace {

constexpr size_t kPage = 4096;
constexpr size_t kHugePage = size_t{2} << 20;
// Below this, asking the system how much memory it has left costs more than it tells.
constexpr size_t kCheckedBytes = size_t{64} << 20;
// What 48-bit addresses leave a process.
constexpr size_t kAddressable = size_t{1} << 47;

/// Of the control group's memory.stat; 0 where there is none.
size_t group_statistic(const char* name) {
  std::ifstream statistics("/sys/fs/cgroup/memory.stat");
  size_t value = 0;
  for (std::string key; statistics >> key >> value;) {
    if (key == name) return value;
  }
  return 0;
}

}  // namespace

std::string HostDevice::model() const {
  std::ifstream cpuinfo("/proc/cpuinfo");
  for (std::string line; std::getline(cpuinfo, line);) {
    if (line.starts_with("model name")) return line.substr(std::min(line.find(':') + 2, line.size()));
  }
  return "CPU";
}

void HostDevice::write(void* to, const void* from, size_t bytes) { std::memcpy(to, from, bytes); }

/// Without swapping: what the kernel calls available, or what a control group leaves.
size_t HostDevice::available_bytes() const {
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
  if (limit_file >> limit && used_file >> used) {
    // Files that were read, a checkpoint above all, count as used and go when memory is wanted.
    const size_t kept = used - std::min(used, group_statistic("inactive_file"));
    available = std::min(available, limit > kept ? limit - kept : 0);
  }
  return available;
}

std::unique_ptr<Executor> HostDevice::executor(int threads) {
  return std::make_unique<HostExecutor>(threads);
}

Device::Allocation HostDevice::take(size_t bytes) {
  size_t granule = bytes >= kHugePage ? kHugePage : kPage;
  size_t mapped = (bytes + granule - 1) / granule * granule;
  if (mapped == 0) mapped = kPage;
  if (bytes > kAddressable || (bytes >= kCheckedBytes && bytes > available_bytes())) {
    throw Error("OUT_OF_MEMORY", "cannot allocate " + std::to_string(bytes) + " bytes: the system has " +
                                     std::to_string(available_bytes()) +
                                     " available; free memory or lower contextLength");
  }
  void* mapping = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapping == MAP_FAILED) {
    throw Error("OUT_OF_MEMORY",
                "cannot allocate " + std::to_string(bytes) + " bytes; free memory or lower contextLength");
  }
  if (granule == kHugePage) madvise(mapping, mapped, MADV_HUGEPAGE);
  auto* data = static_cast<uint8_t*>(mapping);
  poison(data + bytes, mapped - bytes);
  return {data, mapped};
}

void HostDevice::give(const Allocation& allocation) {
  unpoison(allocation.data, allocation.bytes);
  munmap(allocation.data, allocation.bytes);
}

}  // namespace nibblet
