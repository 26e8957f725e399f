#include <algorithm>

#include "kernels/cuda/device.h"
#include "kernels/synthetic/block.h"
#include "kernels/synthetic/cuda.h"

namespace nibblet {
namespace {

constexpr int kThreads = 512;
constexpr int kBlocksPerMultiprocessor = 3;
/// Units a thread should have before another block pays for its copy of the table.
constexpr size_t kUnitsPerThread = 8;

/// What a thread writes at once: as many words' bytes as make whole 16-byte stores.
template <class Block>
constexpr size_t kUnit = std::max<size_t>(16, Block::bytes);

/// Byte i of the region goes to out[i], for i in [first, last).
template <Draw kind, bool alternate>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    draw_kernel(const void* table, uint64_t seed, uint8_t* out, size_t first, size_t last) {
  using Block = DrawBlock<kind, alternate>;
  constexpr size_t kBytes = kUnit<Block>, kTable = draw_entries(kind) * draw_entry_bytes(kind);
  grid_dependency_launch();
  grid_dependency_wait();
  uint8_t* entries = dynamic_shared<uint8_t>();
  if (reinterpret_cast<uintptr_t>(table) % 16 == 0) {
    for (size_t i = threadIdx.x; i < kTable / 16; i += kThreads)
      reinterpret_cast<uint4*>(entries)[i] = static_cast<const uint4*>(table)[i];
  } else {
    for (size_t i = threadIdx.x; i < kTable; i += kThreads)
      entries[i] = static_cast<const uint8_t*>(table)[i];
  }
  __syncthreads();

  const bool aligned = reinterpret_cast<uintptr_t>(out) % 16 == 0;
  const size_t units = (last + kBytes - 1) / kBytes, stride = size_t(gridDim.x) * kThreads;
  for (size_t unit = first / kBytes + size_t(blockIdx.x) * kThreads + threadIdx.x; unit < units;
       unit += stride) {
    union {
      uint4 vectors[kBytes / 16];
      uint8_t bytes[kBytes];
    } drawn;
#pragma unroll
    for (size_t i = 0; i < kBytes / Block::bytes; ++i)
      Block::fill(entries, splitmix64(seed, unit * (kBytes / Block::bytes) + i),
                  drawn.bytes + i * Block::bytes);
    const size_t at = unit * kBytes;
    if (aligned && at >= first && at + kBytes <= last) {
#pragma unroll
      for (size_t i = 0; i < kBytes / 16; ++i) reinterpret_cast<uint4*>(out + at)[i] = drawn.vectors[i];
    } else {
#pragma unroll
      for (size_t i = 0; i < kBytes; ++i) {
        if (at + i >= first && at + i < last) out[at + i] = drawn.bytes[i];
      }
    }
  }
}

template <Draw kind, bool alternate>
cudaError_t draw_with(const DrawArgs& args, const CudaTarget& target) {
  constexpr size_t kBytes = kUnit<DrawBlock<kind, alternate>>;
  const size_t shared_bytes = draw_entries(kind) * draw_entry_bytes(kind);
  const size_t units = args.bytes / kBytes + 2;
  const size_t blocks = std::clamp<size_t>(units / (kThreads * kUnitsPerThread), 1,
                                           size_t(target.multiprocessors) * kBlocksPerMultiprocessor);
  if (cudaError_t error = allow_shared_memory(draw_kernel<kind, alternate>, shared_bytes)) return error;
  return launch(target, {dim3(unsigned(blocks)), dim3(kThreads), shared_bytes}, draw_kernel<kind, alternate>,
                args.table, args.seed, args.out - args.first, args.first, args.first + args.bytes);
}

}  // namespace

cudaError_t draw_cuda(const DrawArgs& args, const CudaTarget& target) {
  if (args.bytes == 0) return cudaSuccess;
  switch (args.draw) {
    case Draw::pairs:
      return draw_with<Draw::pairs, false>(args, target);
    case Draw::bytes:
      return draw_with<Draw::bytes, false>(args, target);
    case Draw::halves:
      return args.alternate ? draw_with<Draw::halves, true>(args, target)
                            : draw_with<Draw::halves, false>(args, target);
    case Draw::words:
      return args.alternate ? draw_with<Draw::words, true>(args, target)
                            : draw_with<Draw::words, false>(args, target);
  }
  return cudaErrorInvalidValue;
}

}  // namespace nibblet
