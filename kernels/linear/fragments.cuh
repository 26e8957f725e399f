#pragma once

#include "kernels/cuda/device.h"
#include "kernels/numerics/bf16.h"
#include "kernels/pack/compact.h"
#include "kernels/pack/layout.h"

/// Weights in Layout::fragments as one warp multiplies them: a unit of 16 rows at a time. Here with one token; with several
/// in token_fragments.cuh. The activations of a unit go into B so that each row's sums leave the tensor core in registers,
/// in order.
///   nvfp4  Column 2t of B holds what lane t of a quad has of the inputs, a block at a time, and zeros elsewhere: that
///          column of the product is the sum over the block alone, which float32 then scales. Odd columns stay zero.
///   others Every column of B holds the token: each lane of a quad ends up with the same sums.
///
/// In what follows g = lane / 4 and t = lane % 4; a lane's two sums belong to rows g and g + 8 of the tile.
namespace nibblet::fragments {

constexpr uint32_t kWholeWarp = 0xffffffffu;

/// What a lane reads of a unit.
template <Format format>
struct Unit;
template <>
struct Unit<Format::nvfp4> {
  uint4 low, high;
  uint32_t scales;
};
template <>
struct Unit<Format::bf16> {
  uint4 low, high;
};
template <>
struct Unit<Format::e4m3> {
  uint4 low;
};
template <>
struct Unit<Format::compact_bf16> {
  uint4 low;  ///< signs and mantissas
  uint2 exponents;
};

/// A unit in shared memory.
template <Format format>
__device__ __forceinline__ Unit<format> read_unit(const uint8_t* unit, int lane) {
  Unit<format> result;
  result.low = reinterpret_cast<const uint4*>(unit)[lane];
  if constexpr (format == Format::compact_bf16) {
    result.exponents = *reinterpret_cast<const uint2*>(unit + compact_exponent_offset(lane));
  } else if constexpr (format != Format::e4m3) {
    result.high = reinterpret_cast<const uint4*>(unit)[32 + lane];
  }
  if constexpr (format == Format::nvfp4) result.scales = reinterpret_cast<const uint32_t*>(unit)[256 + lane];
  return result;
}

/// Starts the warp's copy of a unit from global to shared memory. What a lane copies another may read: __syncwarp() after
/// waiting.
template <Format format>
__device__ __forceinline__ void copy_unit(uint8_t* shared, const uint8_t* unit, int lane) {
  constexpr int kPieces = int(fragment_unit_bytes(format) / 16);
#pragma unroll
  for (int first = 0; first < kPieces; first += 32) {
    if (first + 32 <= kPieces || first + lane < kPieces) {
      copy_async(shared + (first + lane) * 16, unit + (first + lane) * 16);
    }
  }
}

__device__ __forceinline__ uint32_t word_of(const uint4& words, int i) {
  return i == 0 ? words.x : i == 1 ? words.y : i == 2 ? words.z : words.w;
}

/// The four registers of a word of codes, as bf16 pairs of value · 2^-126 (layout.h, fragment_code_bits).
__device__ __forceinline__ void decode_codes(uint32_t word, uint32_t (&a)[4]) {
  constexpr uint32_t kMask = 0x81c081c0;
  a[0] = word & kMask;
  a[1] = word << 3 & kMask;
  a[2] = word << 6 & kMask;
  const uint64_t spread = uint64_t{word & 0x6c006c00} * 0x104200;
  a[3] = (uint32_t(spread) | uint32_t(spread >> 32)) & kMask;
}

/// Scale i of a lane's four, as float32.
__device__ __forceinline__ float scale_of(uint32_t scales, int i) {
  const uint32_t bits = i == 0 ? scales << 20 : i == 1 ? scales << 12 : i == 2 ? scales << 4 : scales >> 4;
  // An e4m3 without sign, shifted into a float32, is its value · 2^-120, subnormals included.
  return __uint_as_float(bits & 0x07f00000) * 0x1p120f;
}

/// The token in shared memory is its inputs as bf16 in order, zeros up to a whole unit, times this: with nvfp4 codes as
/// value · 2^-126, and compact elements of 2^-126 to 2^-111, the products must not become float32 subnormals. Inputs from 2^65
/// on overflow.
template <Format format>
constexpr float kInputScale = format == Format::nvfp4 || format == Format::compact_bf16 ? 0x1p63f : 1.0f;
/// What sums of one token are to be multiplied by; with compact_bf16 by 2^(base - 63) of the row too (compact.cuh).
template <Format format>
constexpr float kOneTokenScale = format == Format::nvfp4 ? 0x1p63f : 1.0f;

/// A lane's B registers for one token. Lives across units: with nvfp4 most lanes keep their zeros for good.
template <Format format>
struct Token {
  static constexpr int kMmas = format == Format::nvfp4 ? 8 : 2;
  uint4 b[kMmas / 2] = {};  ///< of two mma each

  /// @param x  the unit's inputs of the staged token, in shared memory
  __device__ __forceinline__ void read(const uint16_t* x, int lane) {
    const uint4* pieces = reinterpret_cast<const uint4*>(x) + lane % 4 * (kMmas / 2);
#pragma unroll
    for (int i = 0; i < kMmas / 2; i++) {
      load_shared_if(format != Format::nvfp4 || lane / 4 == lane % 4 * 2, b[i], pieces + i);
    }
  }
  __device__ __forceinline__ uint32_t b0(int i) const { return word_of(b[i / 2], i % 2 * 2); }
  __device__ __forceinline__ uint32_t b1(int i) const { return word_of(b[i / 2], i % 2 * 2 + 1); }
};

__device__ __forceinline__ void decode_bytes(uint32_t word, uint32_t& low, uint32_t& high) {
  // Shifted into a bf16 an e4m3 is its value · 2^-120, subnormals included; 0x7b80 is 2^120.
  low = multiply_bf16x2((word << 8 & 0x80008000) | (word << 4 & 0x07f007f0), 0x7b807b80);
  high = multiply_bf16x2((word & 0x80008000) | (word >> 4 & 0x07f007f0), 0x7b807b80);
}

/// Registers of mma i of a bf16, e4m3 or compact_bf16 unit.
template <Format format>
__device__ __forceinline__ void registers_of(const Unit<format>& unit, int i, uint32_t (&a)[4]) {
  if constexpr (format == Format::bf16) {
    const uint4& words = i == 0 ? unit.low : unit.high;
    a[0] = words.x, a[1] = words.y, a[2] = words.z, a[3] = words.w;
  } else if constexpr (format == Format::compact_bf16) {
    const uint32_t exponents = i == 0 ? unit.exponents.x : unit.exponents.y;
#pragma unroll
    for (int j = 0; j < 4; j++)
      a[j] = compact_register(word_of(unit.low, 2 * i + j / 2), exponents, 4 * i + j);
  } else {
    decode_bytes(word_of(unit.low, 2 * i), a[0], a[1]);
    decode_bytes(word_of(unit.low, 2 * i + 1), a[2], a[3]);
  }
}

/// A lane's part of two rows' sums over one token. nvfp4: each lane of a quad has sums of its own blocks.
template <Format format>
struct RowSums {
  float upper = 0;  ///< row g
  float lower = 0;  ///< row g + 8

  __device__ __forceinline__ void add(const Unit<format>& unit, const Token<format>& x) {
    if constexpr (format == Format::nvfp4) {
      float c[2][4] = {};
#pragma unroll
      for (int i = 0; i < 4; i++) {
#pragma unroll
        for (int block = 0; block < 2; block++) {
          const int mma = 4 * block + i;
          uint32_t a[4];
          decode_codes(word_of(block == 0 ? unit.low : unit.high, i), a);
          mma_bf16(c[block], a[0], a[1], a[2], a[3], x.b0(mma), x.b1(mma));
        }
      }
      upper += c[0][0] * scale_of(unit.scales, 0);
      upper += c[1][0] * scale_of(unit.scales, 1);
      lower += c[0][2] * scale_of(unit.scales, 2);
      lower += c[1][2] * scale_of(unit.scales, 3);
    } else {
      // Two chains, as an mma waits long for the one before it.
      float c[2][4] = {};
#pragma unroll
      for (int i = 0; i < 2; i++) {
        uint32_t a[4];
        registers_of(unit, i, a);
        mma_bf16(c[i], a[0], a[1], a[2], a[3], x.b0(i), x.b1(i));
      }
      upper += c[0][0] + c[1][0];
      lower += c[0][2] + c[1][2];
    }
  }

  __device__ __forceinline__ void add(const RowSums& other) {
    upper += other.upper;
    lower += other.lower;
  }

  /// The whole sums, the same in each lane of a quad; all lanes take part. Still to be multiplied by kOneTokenScale.
  __device__ __forceinline__ void finish() {
    if constexpr (format == Format::nvfp4) {
      upper += __shfl_xor_sync(kWholeWarp, upper, 1);
      lower += __shfl_xor_sync(kWholeWarp, lower, 1);
      upper += __shfl_xor_sync(kWholeWarp, upper, 2);
      lower += __shfl_xor_sync(kWholeWarp, lower, 2);
    }
  }
};

}  // namespace nibblet::fragments
