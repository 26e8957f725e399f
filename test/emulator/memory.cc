#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>

#include "test/emulator/control.h"
#include "test/emulator/internal.h"

namespace nibblet::emulated {
namespace {

enum class Kind { device, pinned, registered };

struct Block {
  size_t bytes;
  Kind kind;
  int device;
};

/// Bytes of 0xcc after each allocation: a kernel that writes there is found when the memory is freed.
constexpr size_t canary_bytes = 256;
constexpr unsigned char canary = 0xcc, fresh = 0xee;

std::map<uintptr_t, Block>& blocks() {
  static std::map<uintptr_t, Block> map;
  return map;
}

uintptr_t address(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer); }

/// The block that holds the first byte, or none. The registry is locked.
std::map<uintptr_t, Block>::iterator find(const void* pointer) {
  auto after = blocks().upper_bound(address(pointer));
  if (after == blocks().begin()) return blocks().end();
  auto block = std::prev(after);
  return address(pointer) < block->first + block->second.bytes ? block : blocks().end();
}

size_t used(Kind kind, int device) {
  size_t bytes = 0;
  for (const auto& [start, block] : blocks())
    if (block.kind == kind && (device < 0 || block.device == device))
      bytes += (block.bytes + 511) / 512 * 512;
  return bytes;
}

cudaError_t allocate(const char* call, void** pointer, size_t bytes, Kind kind) {
  *pointer = nullptr;
  if (cudaError_t error = injected_error(call); error != cudaSuccess) return report(error);
  if (cudaError_t error = check_unsafe_call(); error != cudaSuccess) return report(error);
  if (cudaError_t error = sticky_error(); error != cudaSuccess) return report(error);
  if (bytes == 0) return cudaSuccess;
  std::lock_guard lock(registry());
  const size_t limit = configuration().memory_bytes;
  if (kind == Kind::device && (bytes > limit || used(kind, current_device()) + bytes > limit))
    return report(cudaErrorMemoryAllocation);
  void* memory = std::aligned_alloc(512, (bytes + canary_bytes + 511) / 512 * 512);
  if (memory == nullptr) return report(cudaErrorMemoryAllocation);
  std::memset(memory, fresh, bytes);
  std::memset(static_cast<char*>(memory) + bytes, canary, canary_bytes);
  blocks()[address(memory)] = {bytes, kind, current_device()};
  *pointer = memory;
  return cudaSuccess;
}

void check_canary(uintptr_t start, size_t bytes) {
  auto after = reinterpret_cast<const unsigned char*>(start + bytes);
  for (size_t i = 0; i < canary_bytes; ++i) {
    if (after[i] == canary) continue;
    std::fprintf(stderr, "emulated CUDA: byte %zu after an allocation of %zu was overwritten\n", i, bytes);
    std::abort();
  }
}

cudaError_t release(void* pointer, Kind kind) {
  if (pointer == nullptr) return cudaSuccess;
  if (cudaError_t error = check_unsafe_call(); error != cudaSuccess) return report(error);
  std::lock_guard lock(registry());
  auto block = blocks().find(address(pointer));
  if (block == blocks().end() || block->second.kind != kind) return report(cudaErrorInvalidValue);
  check_canary(block->first, block->second.bytes);
  blocks().erase(block);
  std::free(pointer);
  return report(sticky_error());
}

/// @return whether the range is as the direction says: in one device allocation, or in none
bool is_valid(const void* pointer, size_t bytes, bool on_device) {
  auto block = find(pointer);
  if (block == blocks().end()) return !on_device;
  if ((block->second.kind == Kind::device) != on_device && on_device) return false;
  if (block->second.kind == Kind::device && !on_device) return false;
  return address(pointer) + bytes <= block->first + block->second.bytes;
}

cudaError_t check_copy(const void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  std::lock_guard lock(registry());
  if (kind < cudaMemcpyHostToHost || kind > cudaMemcpyDefault) return cudaErrorInvalidMemcpyDirection;
  if (bytes == 0) return cudaSuccess;
  auto is_device = [](const void* pointer) {
    auto block = find(pointer);
    return block != blocks().end() && block->second.kind == Kind::device;
  };
  const bool to_device = kind == cudaMemcpyDefault
                             ? is_device(to)
                             : kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
  const bool from_device = kind == cudaMemcpyDefault
                               ? is_device(from)
                               : kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
  if (to == nullptr || from == nullptr) return cudaErrorInvalidValue;
  return is_valid(to, bytes, to_device) && is_valid(from, bytes, from_device) ? cudaSuccess
                                                                              : cudaErrorInvalidValue;
}

}  // namespace

size_t allocated_bytes() {
  std::lock_guard lock(registry());
  return used(Kind::device, -1);
}

size_t pinned_bytes() {
  std::lock_guard lock(registry());
  return used(Kind::pinned, -1);
}

}  // namespace nibblet::emulated

using namespace nibblet::emulated;

cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  if (cudaError_t error = injected_error(__func__); error != cudaSuccess) return report(error);
  std::lock_guard lock(registry());
  *total = configuration().memory_bytes;
  *free = *total - used(Kind::device, current_device());
  return report(sticky_error());
}

cudaError_t cudaMalloc(void** pointer, size_t bytes) {
  return allocate(__func__, pointer, bytes, Kind::device);
}
cudaError_t cudaFree(void* pointer) { return release(pointer, Kind::device); }
cudaError_t cudaMallocHost(void** pointer, size_t bytes) {
  return allocate(__func__, pointer, bytes, Kind::pinned);
}
cudaError_t cudaHostAlloc(void** pointer, size_t bytes, unsigned) {
  return allocate(__func__, pointer, bytes, Kind::pinned);
}
cudaError_t cudaFreeHost(void* pointer) { return release(pointer, Kind::pinned); }

cudaError_t cudaHostRegister(void* pointer, size_t bytes, unsigned) {
  std::lock_guard lock(registry());
  if (pointer == nullptr || bytes == 0) return report(cudaErrorInvalidValue);
  auto next = blocks().lower_bound(address(pointer));
  if (find(pointer) != blocks().end() || (next != blocks().end() && next->first < address(pointer) + bytes))
    return report(cudaErrorHostMemoryAlreadyRegistered);
  blocks()[address(pointer)] = {bytes, Kind::registered, current_device()};
  return report(sticky_error());
}

cudaError_t cudaHostUnregister(void* pointer) {
  std::lock_guard lock(registry());
  auto block = blocks().find(address(pointer));
  if (block == blocks().end() || block->second.kind != Kind::registered)
    return report(cudaErrorHostMemoryNotRegistered);
  blocks().erase(block);
  return report(sticky_error());
}

cudaError_t cudaHostGetDevicePointer(void** device, void* host, unsigned) {
  std::lock_guard lock(registry());
  auto block = find(host);
  if (block == blocks().end() || block->second.kind == Kind::device) return report(cudaErrorInvalidValue);
  *device = host;
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  if (cudaError_t error = injected_error(__func__); error != cudaSuccess) return report(error);
  if (cudaError_t error = check_copy(to, from, bytes, kind); error != cudaSuccess) return report(error);
  return enqueue(stream, [=] {
    if (bytes > 0) std::memmove(to, from, bytes);
    return cudaSuccess;
  });
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  if (cudaError_t error = check_unsafe_call(); error != cudaSuccess) return report(error);
  return cudaMemcpyAsync(to, from, bytes, kind, nullptr);
}

cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
  if (cudaError_t error = injected_error(__func__); error != cudaSuccess) return report(error);
  {
    std::lock_guard lock(registry());
    if (bytes > 0 && !is_valid(to, bytes, true)) return report(cudaErrorInvalidValue);
  }
  return enqueue(stream, [=] {
    if (bytes > 0) std::memset(to, value, bytes);
    return cudaSuccess;
  });
}

cudaError_t cudaMemset(void* to, int value, size_t bytes) {
  return cudaMemsetAsync(to, value, bytes, nullptr);
}
