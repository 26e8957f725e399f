#pragma once

#include <cuda_runtime.h>

#include <cstdint>

/// What kernels/cuda/device.h calls in place of PTX.
namespace nibblet::emulated {

/// The dynamic shared memory of the running block: 0xee bytes at its start.
void* dynamic_shared();
/// Where a pointer lies in the shared memory of the block, from 1024 on. A fault for a pointer elsewhere.
uint32_t shared_address(const void* pointer, Place where = Place::current());

/// A fault unless `pointer` is a multiple of `bytes`.
void check_alignment(const void* pointer, int bytes, const char* what, Place where);

inline uint4 load16(const void* from, uint64_t policy, Place where = Place::current()) {
  (void)policy;
  if (reinterpret_cast<uintptr_t>(from) % 16 != 0) check_alignment(from, 16, "a 16-byte load", where);
  return *static_cast<const uint4*>(from);
}

/// The copy happens when its group is waited for; until then the 16 bytes at `shared` are 0xee.
void copy_async(void* shared, const void* from, Place where = Place::current());
void copy_async_commit();
void copy_async_wait(int pending);

/// Products are exact and summed in double precision, then rounded once.
void mma_bf16(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1,
              Place where = Place::current());
uint32_t multiply_bf16x2(uint32_t a, uint32_t b);
void load_transposed(uint32_t (&words)[4], const void* row, Place where = Place::current());
float2 floats_of_f16_pair(uint32_t pair);

/// A kernel launched with a programmatic edge in which no thread calls this is a fault.
void grid_dependency_wait();

}  // namespace nibblet::emulated
