#include "kernels/pack/compact.h"

#include <cstring>

namespace nibblet {
namespace {

template <class T>
T load(const uint8_t* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

}  // namespace

uint16_t compact_element(const uint8_t* matrix, int32_t out, int32_t in, int32_t row, int32_t column) {
  const auto about =
      load<CompactRow>(matrix + compact_rows_offset(out, in) + size_t(row) * sizeof(CompactRow));
  const uint8_t* list = matrix + compact_list_offset(out, in);
  for (uint32_t i = 0; i < about.count(); i++) {
    const uint32_t exception =
        i < 2 ? about.first[i] : load<uint32_t>(list + (size_t(about.more) + i - 2) * sizeof(uint32_t));
    if (int32_t(exception & 0xffff) == column) return uint16_t(exception >> 16);
  }
  constexpr int32_t kInputs = fragment_inputs(Format::compact_bf16);
  const uint8_t* unit = matrix + size_t(row / kFragmentRows) * fragment_tile_bytes(Format::compact_bf16, in) +
                        size_t(column / kInputs) * fragment_unit_bytes(Format::compact_bf16);
  // Where bf16 has it: which lane, which of its eight registers, which half.
  const size_t at = fragment_element_offset(Format::bf16, row % kFragmentRows, column % kInputs);
  const int lane = int(at % 512 / 16), r = int(at / 512 * 4 + at % 16 / 4), half = int(at % 4 / 2);
  const uint32_t word =
      compact_register(load<uint32_t>(unit + compact_plane_offset(lane) + size_t(r / 2) * 4),
                       load<uint32_t>(unit + compact_exponent_offset(lane) + size_t(r / 4) * 4), r);
  return uint16_t(compact_restored(word >> (16 * half) & 0xffff, about.base()));
}

}  // namespace nibblet
