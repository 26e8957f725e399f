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

/// Makes a barrier in shared memory whose phases end after `count` arrivals and the bytes that these expect.
void mbarrier_init(uint64_t* barrier, uint32_t count, Place where = Place::current());
void mbarrier_arrive(uint64_t* barrier, uint32_t expected_bytes = 0, Place where = Place::current());
/// Whether the phase of that parity ended. The copies of a phase happen once a thread asks after all arrived.
bool mbarrier_try_wait(uint64_t* barrier, uint32_t parity, Place where = Place::current());
void mbarrier_wait(uint64_t* barrier, uint32_t parity, Place where = Place::current());
/// A copy of the bulk engine, counted by `barrier`; until it happens the bytes at `shared` are 0xee.
void copy_bulk(void* shared, const void* from, uint32_t bytes, uint64_t* barrier,
               Place where = Place::current());

/// Products are exact and summed in double precision, then rounded once.
void mma_bf16(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1,
              Place where = Place::current());
uint32_t multiply_bf16x2(uint32_t a, uint32_t b);

/// A kernel launched with a programmatic edge in which no thread calls this is a fault.
void grid_dependency_wait();

}  // namespace nibblet::emulated
