#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#ifndef __CUDACC__
#include "test/emulator/device.h"
#endif

/// The instructions that CUDA C++ has no name for. Outside of nvcc they are those of the emulator (test/emulator).
namespace nibblet {

/// The dynamic shared memory of the block, 128-byte aligned.
template <class T>
__device__ __forceinline__ T* dynamic_shared() {
#ifdef __CUDACC__
  extern __shared__ __align__(128) uint8_t nibblet_dynamic_shared[];
  return reinterpret_cast<T*>(nibblet_dynamic_shared);
#else
  return static_cast<T*>(emulated::dynamic_shared());
#endif
}

/// Waits until all that earlier kernels of the stream wrote can be read. See launch.h.
__device__ __forceinline__ void grid_dependency_wait() {
#if defined(__CUDACC__) && defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#elif !defined(__CUDACC__)
  emulated::grid_dependency_wait();
#endif
}

/// Lets the next kernel of the stream start as soon as all blocks called this or ended.
__device__ __forceinline__ void grid_dependency_launch() {
#if defined(__CUDACC__) && defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/// For weights: what is read once a step should not push out of the second-level cache what is read again.
__device__ __forceinline__ uint64_t evict_first_policy() {
#ifdef __CUDACC__
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
#else
  return 0;
#endif
}

/// 16 bytes of constant data, past the first-level cache. `from` is 16-byte aligned.
__device__ __forceinline__ uint4 load_stream(const void* from, uint64_t policy) {
#ifdef __CUDACC__
  uint4 value;
  asm volatile("ld.global.nc.L1::no_allocate.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %5;"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "l"(from), "l"(policy));
  return value;
#else
  return emulated::load16(from, policy);
#endif
}

/// The 32-bit form of a pointer to shared memory.
__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
#ifdef __CUDACC__
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
#else
  return emulated::shared_address(pointer);
#endif
}

/// Copies 16 bytes from global to shared memory in the background; both 16-byte aligned. Without a cache policy: with one, what
/// CUDA 13.0 makes of this faults on an H100 as an illegal instruction.
__device__ __forceinline__ void copy_async(void* shared, const void* from) {
#ifdef __CUDACC__
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)), "l"(from)
               : "memory");
#else
  emulated::copy_async(shared, from);
#endif
}

/// Closes the group of this thread's copies since the last call.
__device__ __forceinline__ void copy_async_commit() {
#ifdef __CUDACC__
  asm volatile("cp.async.commit_group;" ::: "memory");
#else
  emulated::copy_async_commit();
#endif
}

/// Waits until at most `Pending` of this thread's latest groups are under way. Other threads see the data after a barrier.
template <int Pending>
__device__ __forceinline__ void copy_async_wait() {
#ifdef __CUDACC__
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
#else
  emulated::copy_async_wait(Pending);
#endif
}

/// c += a · b for bf16 a [16, 16] and b [16, 8], float32 c [16, 8], spread over the warp as mma.m16n8k16 defines it:
/// with g = lane / 4 and t = lane % 4, a = {(g; 2t, 2t+1), (g+8; 2t, 2t+1), (g; 2t+8, 2t+9), (g+8; 2t+8, 2t+9)},
/// b = {(2t, 2t+1; g), (2t+8, 2t+9; g)}, c = {(g, 2t), (g, 2t+1), (g+8, 2t), (g+8, 2t+1)}; low half first.
__device__ __forceinline__ void mma_bf16(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                         uint32_t b0, uint32_t b1) {
#ifdef __CUDACC__
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
#else
  emulated::mma_bf16(c, a0, a1, a2, a3, b0, b1);
#endif
}

/// a · b of the same shapes, without a sum to add to.
__device__ __forceinline__ void mma_bf16_product(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                                 uint32_t a3, uint32_t b0, uint32_t b1) {
#ifdef __CUDACC__
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%10, %10, %10, %10};"
      : "=f"(c[0]), "=f"(c[1]), "=f"(c[2]), "=f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1), "f"(0.0f));
#else
  c[0] = c[1] = c[2] = c[3] = 0.0f;
  emulated::mma_bf16(c, a0, a1, a2, a3, b0, b1);
#endif
}

/// Four 8 × 8 matrices of 16-bit elements from shared memory, transposed: with g = lane / 4 and t = lane % 4, words[i] is
/// elements g of rows 2t and 2t + 1 of matrix i.
/// @param row  where row lane % 8 of matrix lane / 8 lies: 16 bytes, 16-byte aligned
__device__ __forceinline__ void load_transposed(uint32_t (&words)[4], const void* row) {
#ifdef __CUDACC__
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(shared_address(row))
               : "memory");
#else
  emulated::load_transposed(words, row);
#endif
}

/// The float16 in the lower half of a word, and that in the upper.
__device__ __forceinline__ float2 floats_of_f16_pair(uint32_t pair) {
#ifdef __CUDACC__
  float2 values;
  asm("{\n.reg .b16 low, high;\nmov.b32 {low, high}, %2;\ncvt.f32.f16 %0, low;\ncvt.f32.f16 %1, high;\n}"
      : "=f"(values.x), "=f"(values.y)
      : "r"(pair));
  return values;
#else
  return emulated::floats_of_f16_pair(pair);
#endif
}

/// Two bf16 products, rounded to nearest even, subnormals kept.
__device__ __forceinline__ uint32_t multiply_bf16x2(uint32_t a, uint32_t b) {
#ifdef __CUDACC__
  uint32_t product;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(product) : "r"(a), "r"(b));
#else
  // With -0 as the addend a product of zero keeps its sign.
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(product) : "r"(a), "r"(b), "r"(0x80008000u));
#endif
  return product;
#else
  return emulated::multiply_bf16x2(a, b);
#endif
}

/// Replaces `value` by 16 bytes of shared memory where `wanted`; without the copy that a branch would cost.
__device__ __forceinline__ void load_shared_if(bool wanted, uint4& value, const void* shared) {
#ifdef __CUDACC__
  asm volatile("{\n.reg .pred p;\nsetp.ne.u32 p, %5, 0;\n@p ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];\n}"
               : "+r"(value.x), "+r"(value.y), "+r"(value.z), "+r"(value.w)
               : "r"(shared_address(shared)), "r"(uint32_t{wanted}));
#else
  if (wanted) value = *static_cast<const uint4*>(shared);
#endif
}

/// Writes 16 bytes that nobody reads soon: first to leave the caches. Both pointers are 16-byte aligned.
__device__ __forceinline__ void store_once(void* to, const void* from) {
  const uint4 value = *static_cast<const uint4*>(from);
#ifdef __CUDACC__
  asm volatile("st.global.cs.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(value.x), "r"(value.y),
               "r"(value.z), "r"(value.w)
               : "memory");
#else
  *static_cast<uint4*>(to) = value;
#endif
}

/// 16 bytes that this block reads once and an earlier kernel may have written. `from` is 16-byte aligned.
__device__ __forceinline__ uint4 load_once(const void* from) {
#ifdef __CUDACC__
  uint4 value;
  asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "l"(from)
               : "memory");
  return value;
#else
  return emulated::load16(from, 0);
#endif
}

/// Adds to a counter of the whole GPU. What this thread wrote before, and what it knows of by a barrier, is seen by whoever
/// finds the sum, and by those it meets at a barrier then.
/// @return the counter before
__device__ __forceinline__ uint32_t arrive_on(uint32_t* counter, uint32_t count) {
#ifdef __CUDACC__
  uint32_t before;
  asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], %2;"
               : "=r"(before)
               : "l"(counter), "r"(count)
               : "memory");
  return before;
#else
  return atomicAdd(counter, count);
#endif
}

/// Has `value` computed here at the latest: compilers put off what is only used behind a wait, and so into the time after it.
__device__ __forceinline__ void settle(int32_t& value) {
#ifdef __CUDACC__
  asm volatile("" : "+r"(value));
#else
  static_cast<void>(value);
#endif
}

}  // namespace nibblet
