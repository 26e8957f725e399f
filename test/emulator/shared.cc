#include <sys/mman.h>

#include <cstring>
#include <new>

#include "test/emulator/block.h"
#include "test/emulator/device.h"

namespace nibblet::emulated {

/// More than any block may ask for, and a page without access at the end.
constexpr size_t shared_room = size_t{256} << 10;
constexpr unsigned char poison = 0xee;

void Processor::prepare_shared(size_t bytes) {
  if (shared_memory_ == nullptr) {
    void* memory =
        mmap(nullptr, shared_room + (size_t{64} << 10), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, shared_room, PROT_READ | PROT_WRITE) != 0)
      throw std::bad_alloc();
    shared_memory_ = static_cast<char*>(memory);
  }
  shared_ = shared_memory_ + shared_room - (bytes + 127) / 128 * 128;
}

void Processor::poison_shared() {
  std::memset(shared_, poison, size_t(shared_memory_ + shared_room - shared_));
}

void Processor::check_shared() {
  for (const char* at = shared_ + shared_bytes(); at != shared_memory_ + shared_room; ++at) {
    if (static_cast<unsigned char>(*at) == poison) continue;
    fault_outside("wrote " + std::to_string(at - shared_ - ptrdiff_t(shared_bytes()) + 1) +
                  " bytes past its dynamic shared memory");
    return;
  }
}

Processor::~Processor() {
  if (shared_memory_ != nullptr) munmap(shared_memory_, shared_room + (size_t{64} << 10));
}

void* dynamic_shared() { return Processor::current().shared(); }

uint32_t shared_address(const void* pointer, Place) {
  Processor& processor = Processor::current();
  const ptrdiff_t offset = static_cast<const char*>(pointer) - processor.shared();
  if (offset >= 0 && size_t(offset) < processor.shared_bytes()) return 1024 + uint32_t(offset);
  return uint32_t(reinterpret_cast<uintptr_t>(pointer));
}

void check_alignment(const void* pointer, int bytes, const char* what, Place where) {
  if (reinterpret_cast<uintptr_t>(pointer) % uintptr_t(bytes) == 0) return;
  char text[160];
  std::snprintf(text, sizeof text, "%s at %p, which is not a multiple of %d", what, pointer, bytes);
  fault(text, where);
}

void copy_async(void* shared, const void* from, Place where) {
  check_alignment(shared, 16, "cp.async to", where);
  check_alignment(from, 16, "cp.async from", where);
  Thread& thread = Processor::current().thread();
  thread.copies.push_back({shared, from, 16});
  ++thread.open_copies;
  std::memset(shared, poison, 16);
}

void copy_async_commit() {
  Thread& thread = Processor::current().thread();
  thread.groups.push_back(std::exchange(thread.open_copies, 0));
}

void copy_async_wait(int pending) {
  Thread& thread = Processor::current().thread();
  if (thread.groups.size() <= size_t(pending)) return;
  const auto last = thread.groups.end() - pending;
  size_t done = 0;
  for (auto group = thread.groups.begin(); group != last; ++group) done += *group;
  for (size_t i = 0; i < done; ++i)
    std::memcpy(thread.copies[i].to, thread.copies[i].from, thread.copies[i].bytes);
  thread.copies.erase(thread.copies.begin(), thread.copies.begin() + ptrdiff_t(done));
  thread.groups.erase(thread.groups.begin(), last);
}

void grid_dependency_wait() { Processor::current().waited_for_predecessor = true; }

}  // namespace nibblet::emulated
