#pragma once

#include "kernels/pack/layout.h"

/// Format::compact_bf16: what a bf16 weight holds, in three quarters of its bytes. In Layout::fragments; compact_panels.h has
/// what differs in panels.
///
/// The exponents of a row of weights lie close together. Each row has a base, and an element whose biased exponent is
/// base + 1 to base + 15 is stored as sign, mantissa and the difference, 4 bits: the bf16 of element · 2^-base, of which
/// bits 14 to 11 are zero. Difference 0 is a zero with its sign, or stands for an exception, whose bits are in a list and
/// whose sign and mantissa are stored as 0, so that it adds nothing to a sum. Subnormals, infinities and NaN are exceptions.
namespace nibblet {

constexpr uint32_t kCompactWindow = 15;
/// The largest base: 2^(base - 63) must be a float32 (linear/compact.cuh). Weights beyond 2^78 are exceptions.
constexpr uint32_t kCompactLargestBase = 190;
/// Inputs that an exception can name.
constexpr int32_t kCompactMostInputs = 65536;

/// What a row has beside its codes.
struct alignas(16) CompactRow {
  uint32_t more;            ///< where in the list its third exception and those behind it are
  uint32_t count_and_base;  ///< exceptions << 8 | base
  uint32_t first[2];        ///< its first two exceptions; 0 where there are fewer

  constexpr uint32_t base() const { return count_and_base & 0xff; }
  constexpr uint32_t count() const { return count_and_base >> 8; }
};

/// One exception. Those of a row are in the order of their inputs.
constexpr uint32_t compact_exception(uint32_t input, uint32_t bits) { return input | bits << 16; }

constexpr bool is_compact_exception(uint32_t bits, uint32_t base) {
  const uint32_t exponent = bits >> 7 & 0xff;
  return (bits & 0x7fff) != 0 && (exponent <= base || exponent > base + kCompactWindow);
}
/// The bf16 of an element · 2^-base; 0 for an exception.
constexpr uint32_t compact_reduced(uint32_t bits, uint32_t base) {
  return is_compact_exception(bits, base) ? 0 : (bits & 0x7fff) == 0 ? bits : bits - (base << 7);
}
/// The element again.
constexpr uint32_t compact_restored(uint32_t reduced, uint32_t base) {
  return (reduced & 0x7fff) == 0 ? reduced : reduced + (base << 7);
}

/// A lane's registers r = 0 to 7 hold two reduced elements each. Their signs and mantissas go into word r / 2 of four, the
/// even register where it has them and the odd one turned by a byte, and their exponents into word r / 4 of two.
constexpr uint32_t kCompactPlane = 0x807f807f;
constexpr uint32_t kCompactExponents = 0x07800780;

constexpr uint32_t rotated_left(uint32_t value, int bits) { return value << bits | value >> (32 - bits); }

constexpr uint32_t compact_plane_bits(uint32_t elements, int r) {
  const uint32_t plane = elements & kCompactPlane;
  return r % 2 == 0 ? plane : rotated_left(plane, 24);
}
constexpr uint32_t compact_exponent_bits(uint32_t elements, int r) {
  const uint32_t exponents = elements & kCompactExponents;
  return r % 4 == 0   ? exponents
         : r % 4 == 1 ? exponents << 4
         : r % 4 == 2 ? exponents >> 4
                      : rotated_left(exponents, 8);
}
/// Register r of its two words.
constexpr uint32_t compact_register(uint32_t plane, uint32_t exponents, int r) {
  const uint32_t turned = r % 2 == 0 ? plane : rotated_left(plane, 8);
  const uint32_t shifted = r % 4 == 0   ? exponents
                           : r % 4 == 1 ? exponents >> 4
                           : r % 4 == 2 ? exponents << 4
                                        : rotated_left(exponents, 24);
  return (turned & kCompactPlane) | (shifted & kCompactExponents);
}
static_assert((compact_plane_bits(0xffffffff, 0) ^ compact_plane_bits(0xffffffff, 1)) == 0xffffffff);
static_assert((compact_exponent_bits(0xffffffff, 0) ^ compact_exponent_bits(0xffffffff, 1) ^
               compact_exponent_bits(0xffffffff, 2) ^ compact_exponent_bits(0xffffffff, 3)) == 0xffffffff);

constexpr size_t compact_plane_offset(int lane) { return size_t(lane) * 16; }
constexpr size_t compact_exponent_offset(int lane) { return 512 + size_t(lane) * 8; }

/// Where the rows and the list of exceptions are, and the bytes of a matrix with that many behind the first two of rows.
constexpr size_t compact_rows_offset(int32_t out, int32_t in) {
  return size_t(round_up(out, kFragmentRows) / kFragmentRows) * fragment_tile_bytes(Format::compact_bf16, in);
}
constexpr size_t compact_list_offset(int32_t out, int32_t in) {
  return compact_rows_offset(out, in) + size_t(round_up(out, kFragmentRows)) * sizeof(CompactRow);
}
constexpr size_t compact_matrix_bytes(int32_t out, int32_t in, size_t listed) {
  return (compact_list_offset(out, in) + listed * sizeof(uint32_t) + 63) / 64 * 64;
}

/// The bits of element [row, column] of a matrix: what it was made of.
uint16_t compact_element(const uint8_t* matrix, int32_t out, int32_t in, int32_t row, int32_t column);

}  // namespace nibblet
