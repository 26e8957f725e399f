#include <cuda_runtime.h>

#include "kernels/cuda/device.h"
#include "kernels/pack/cuda.h"
#include "kernels/pack/layout.h"

/// Checkpoint tensors to packed weights on the device. Threads own destination words; words that another part shares are
/// read, merged and written back, which is safe because launches of one stream run one after another. None lets the next
/// kernel start early: those that multiply read weights before they wait for anything.
namespace nibblet {
namespace {

constexpr int kThreads = 256;

/// The part of a matrix that is packed.
struct Part {
  const uint8_t* elements;
  const uint8_t* block_scales;
  uint8_t* matrix;
  int32_t out, in;
  int32_t first, last;  ///< rows of the matrix

  __device__ __forceinline__ bool has(int32_t row) const { return row >= first && row < last; }
};

/// `Words` 32-bit words from any address, of which the last may lie beyond `end`: bytes from there on are zero.
template <int Words>
__device__ __forceinline__ void load_words(const uint8_t* from, const uint8_t* end,
                                           uint32_t (&words)[Words]) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(from);
  if (from + Words * 4 <= end && address % (Words * 4) == 0) {
    if constexpr (Words == 4) {
      const uint4 value = *reinterpret_cast<const uint4*>(from);
      words[0] = value.x, words[1] = value.y, words[2] = value.z, words[3] = value.w;
    } else if constexpr (Words == 2) {
      const uint2 value = *reinterpret_cast<const uint2*>(from);
      words[0] = value.x, words[1] = value.y;
    } else {
      words[0] = *reinterpret_cast<const uint32_t*>(from);
    }
    return;
  }
  const bool whole = from + Words * 4 <= end && address % 4 == 0;
#pragma unroll
  for (int i = 0; i < Words; i++) {
    if (whole) {
      words[i] = reinterpret_cast<const uint32_t*>(from)[i];
    } else {
      words[i] = 0;
      for (int byte = 0; byte < 4; byte++) {
        if (from + i * 4 + byte < end) words[i] |= uint32_t{from[i * 4 + byte]} << (8 * byte);
      }
    }
  }
}

/// Writes the bits of `mask`.
__device__ __forceinline__ void merge(uint4* to, const uint4& words, uint32_t mask) {
  if (mask == 0xffffffff) {
    *to = words;
    return;
  }
  const uint4 old = *to;
  *to = make_uint4((old.x & ~mask) | (words.x & mask), (old.y & ~mask) | (words.y & mask),
                   (old.z & ~mask) | (words.z & mask), (old.w & ~mask) | (words.w & mask));
}

/// Four words of a lane, from the eight bytes of codes that rows g and g + 8 have in a block.
__device__ __forceinline__ uint4 fragment_words(const uint32_t* upper, const uint32_t* lower) {
  uint32_t words[4];
#pragma unroll
  for (int i = 0; i < 4; i++) {
    words[i] = 0;
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const uint32_t codes = (j % 2 == 0 ? upper : lower)[i / 2] >> (16 * (i % 2) + 8 * (j / 2));
      words[i] |= fragment_code_bits(codes & 15, j, 0) | fragment_code_bits(codes >> 4 & 15, j, 1);
    }
  }
  return make_uint4(words[0], words[1], words[2], words[3]);
}

/// A warp packs one unit.
template <Format format>
__global__ void __launch_bounds__(kThreads) pack_fragments(const Part part, int32_t units, int64_t count) {
  grid_dependency_wait();
  const int lane = int(threadIdx.x % 32), g = lane / 4, t = lane % 4;
  constexpr int32_t kInputs = fragment_inputs(format);
  const int64_t stride = int64_t(row_bytes(format, part.in));
  for (int64_t index = (int64_t(blockIdx.x) * kThreads + threadIdx.x) / 32; index < count;
       index += int64_t(gridDim.x) * (kThreads / 32)) {
    const int32_t tile = part.first / kFragmentRows + int32_t(index / units);
    const int32_t unit = int32_t(index % units);
    const int32_t row = tile * kFragmentRows + g;
    const bool has_upper = part.has(row), has_lower = part.has(row + 8);
    if (!has_upper && !has_lower) continue;
    uint8_t* to = part.matrix + (int64_t(tile) * units + unit) * int64_t(fragment_unit_bytes(format));
    // 16 bytes of a row for nvfp4 (32 inputs) and bf16 (8), 8 for e4m3 (8).
    constexpr int kWords = format == Format::e4m3 ? 2 : 4;
    uint32_t upper[kWords] = {}, lower[kWords] = {};
    const int64_t offset = int64_t(row_bytes(format, unit * kInputs)) + t * kWords * 4;
    const uint8_t* source = part.elements + (row - part.first) * stride;
    if (has_upper && offset < stride) load_words(source + offset, source + stride, upper);
    source += 8 * stride;
    if (has_lower && offset < stride) load_words(source + offset, source + stride, lower);
    uint4* first = reinterpret_cast<uint4*>(to) + lane;
    if constexpr (format == Format::nvfp4) {
      const uint32_t mask = (has_upper ? kFragmentUpperRows : 0) | (has_lower ? ~kFragmentUpperRows : 0);
      merge(first, fragment_words(upper, lower), mask);
      merge(first + 32, fragment_words(upper + 2, lower + 2), mask);
      const int32_t blocks = part.in / kBlockInputs, block = unit * 8 + 2 * t;
      for (int j = 0; j < 4; j++) {
        const int32_t from = row + j / 2 * 8;
        if (!part.has(from) || block + j % 2 >= blocks) continue;
        to[1024 + lane * 4 + j] = part.block_scales[int64_t(from - part.first) * blocks + block + j % 2];
      }
    } else if constexpr (format == Format::bf16) {
      // Words of the two rows take turns.
      for (int i = 0; i < 2; i++) {
        uint4 words = make_uint4(upper[2 * i], lower[2 * i], upper[2 * i + 1], lower[2 * i + 1]);
        if (!has_upper || !has_lower) {
          const uint4 old = first[32 * i];
          if (!has_upper) words.x = old.x, words.z = old.z;
          if (!has_lower) words.y = old.y, words.w = old.w;
        }
        first[32 * i] = words;
      }
    } else {
      uint32_t words[4];
      for (int i = 0; i < 4; i++) {
        const uint32_t high = upper[i / 2] >> (16 * (i % 2)), low = lower[i / 2] >> (16 * (i % 2));
        words[i] = (high & 0xff) | (high & 0xff00) << 8 | (low & 0xff) << 8 | (low & 0xff00) << 16;
      }
      merge(first, make_uint4(words[0], words[1], words[2], words[3]),
            (has_upper ? 0x00ff00ff : 0) | (has_lower ? 0xff00ff00 : 0));
    }
  }
}

/// Exchanges nibble i of word j and nibble j of word i of eight words.
__device__ __forceinline__ void transpose_nibbles(uint32_t (&words)[8]) {
  const auto swap = [&](int i, int distance, uint32_t mask, int shift) {
    const uint32_t difference = (words[i] >> shift ^ words[i + distance]) & mask;
    words[i + distance] ^= difference;
    words[i] ^= difference << shift;
  };
#pragma unroll
  for (int i = 0; i < 4; i++) swap(i, 4, 0x0000ffff, 16);
#pragma unroll
  for (int i = 0; i < 4; i++) swap(i + i / 2 * 2, 2, 0x00ff00ff, 8);
#pragma unroll
  for (int i = 0; i < 4; i++) swap(2 * i, 1, 0x0f0f0f0f, 4);
}

/// A thread packs a lane of eight columns: the same eight inputs of rows r, r + 16 and so on of 128. Sixteen threads of
/// neighbouring rows write 64 bytes together; sixteen pairs of them, in one block, read what 128 rows have of 256 inputs.
__global__ void __launch_bounds__(kThreads) pack_columns(const Part part, int32_t groups, int64_t count) {
  grid_dependency_wait();
  const int64_t stride = part.in / 2;
  const int32_t blocks = part.in / kBlockInputs;
  for (int64_t index = int64_t(blockIdx.x) * kThreads + threadIdx.x; index < count;
       index += int64_t(gridDim.x) * kThreads) {
    // Lanes fastest, then eights of inputs, then stretches of 128 rows.
    const int32_t lane = int32_t(index % kPanelRows), group = int32_t(index / kPanelRows % groups);
    const int32_t chunk = part.first / kColumnRows + int32_t(index / kPanelRows / groups);
    const int32_t row = chunk * kColumnRows + lane, k = group * 8;
    uint32_t words[8] = {}, mask = 0;
#pragma unroll
    for (int n = 0; n < 8; n++) {
      const int32_t from = row + n * kPanelRows;
      if (!part.has(from)) continue;
      mask |= 0xfu << (4 * n);
      const uint8_t* source = part.elements + (from - part.first) * stride + k / 2;
      uint32_t word[1];
      load_words(source, source + 4, word);
      words[n] = word[0];
    }
    if (mask == 0) continue;
    transpose_nibbles(words);
    uint8_t* block = part.matrix + size_t(k / kBlockInputs) * column_block_bytes(part.out);
#pragma unroll
    for (int c = 0; c < 8; c++) {
      uint32_t* to =
          reinterpret_cast<uint32_t*>(block + size_t(k % kBlockInputs + c) * column_bytes(part.out) +
                                      size_t(chunk) * (kColumnRows / 2)) +
          lane;
      *to = mask == 0xffffffff ? words[c] : (*to & ~mask) | (words[c] & mask);
    }
    // The block's scales, half of the rows to each of its two eights.
    uint8_t* scales = block + column_scales_offset(part.out);
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int32_t from = row + (group % 2 * 4 + i) * kPanelRows;
      if (part.has(from)) {
        scales[from] = part.block_scales[int64_t(from - part.first) * blocks + k / kBlockInputs];
      }
    }
  }
}

cudaError_t copy(uint8_t* to, const uint8_t* from, size_t bytes, const CudaTarget& target) {
  return bytes == 0 ? cudaSuccess : cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, target.stream);
}

cudaError_t copy_rows(const PackArgs& args, const CudaTarget& target) {
  const size_t stride = row_bytes(args.format, args.in);
  const cudaError_t error =
      copy(args.matrix + size_t(args.first_row) * stride, args.elements, size_t(args.rows) * stride, target);
  if (error != cudaSuccess || args.format != Format::nvfp4) return error;
  const size_t scales = size_t(args.in) / kBlockInputs;
  return copy(args.matrix + rows_scales_offset(args.out, args.in) + size_t(args.first_row) * scales,
              args.block_scales, size_t(args.rows) * scales, target);
}

/// Enough threads to fill the machine several times over; they walk what is left.
LaunchShape shape_for(int64_t threads, const CudaTarget& target) {
  const int64_t blocks = (threads + kThreads - 1) / kThreads, most = int64_t(target.multiprocessors) * 32;
  return {dim3(unsigned(blocks < most ? blocks : most)), dim3(kThreads)};
}

template <Format format>
cudaError_t launch_fragments(const PackArgs& args, const Part& part, const CudaTarget& target) {
  const int32_t units = fragment_units(format, args.in);
  const int64_t tiles = (part.last - 1) / kFragmentRows - part.first / kFragmentRows + 1;
  return launch(target, shape_for(tiles * units * 32, target), pack_fragments<format>, part, units,
                tiles * units);
}

}  // namespace

cudaError_t pack_cuda(const PackArgs& args, const CudaTarget& target) {
  if (args.rows <= 0) return cudaSuccess;
  const Part part = {args.elements,  args.block_scales,         args.matrix, args.out, args.in,
                     args.first_row, args.first_row + args.rows};
  switch (args.layout) {
    case Layout::rows:
      return copy_rows(args, target);
    case Layout::columns: {
      if (args.format != Format::nvfp4) break;
      const int32_t groups = args.in / 8;
      const int64_t chunks = (part.last - 1) / kColumnRows - part.first / kColumnRows + 1;
      const int64_t count = chunks * groups * kPanelRows;
      return launch(target, shape_for(count, target), pack_columns, part, groups, count);
    }
    case Layout::fragments:
      if (args.format == Format::nvfp4) return launch_fragments<Format::nvfp4>(args, part, target);
      if (args.format == Format::bf16) return launch_fragments<Format::bf16>(args, part, target);
      if (args.format == Format::e4m3) return launch_fragments<Format::e4m3>(args, part, target);
      break;
    case Layout::panels:
      break;
  }
  return cudaErrorInvalidValue;
}

}  // namespace nibblet
