#include "kernels/pack/pack.h"

#include <algorithm>
#include <cstring>

#include "kernels/numerics/bf16.h"
#include "kernels/numerics/e2m1.h"
#include "kernels/numerics/e4m3.h"
#include "kernels/numerics/partition.h"
#include "kernels/pack/compact_panels.h"
#include "kernels/pack/layout.h"

namespace nibblet {
namespace {

/// Bytes of one row of the source tensor and of its block scales.
struct Source {
  size_t elements;
  size_t scales;
};

Source source_strides(const PackArgs& args) {
  return {row_bytes(args.format, args.in), args.format == Format::nvfp4 ? size_t(args.in) / kBlockInputs : 0};
}

/// Reports e4m3 bytes that are NaN, or, for block scales, that have the sign bit set (a negative scale; minus zero
/// counts, no exporter writes it and kernels read scales as unsigned).
void check_bytes(const PackArgs& args, const uint8_t* bytes, size_t first, size_t count, bool is_scale) {
  // NaN is 0x7f below the sign bit; an unsigned maximum over a whole row compiles to one instruction per vector.
  const uint8_t mask = is_scale ? 0xff : 0x7f;
  uint8_t largest = 0;
  for (size_t i = 0; i < count; i++) largest = std::max<uint8_t>(largest, bytes[i] & mask);
  if (largest < 0x7f) return;
  for (size_t i = 0; i < count; i++) {
    if ((bytes[i] & mask) >= 0x7f) {
      args.bad->store(int64_t(first + i) + 1, std::memory_order_relaxed);
      return;
    }
  }
}

void check_row(const PackArgs& args, int32_t row) {
  Source stride = source_strides(args);
  if (args.format == Format::e4m3) {
    check_bytes(args, args.elements + row * stride.elements, row * stride.elements, stride.elements, false);
  } else if (args.format == Format::nvfp4) {
    check_bytes(args, args.block_scales + row * stride.scales, row * stride.scales, stride.scales, true);
  }
}

void pack_row(const PackArgs& args, int32_t row) {
  Source stride = source_strides(args);
  size_t to = size_t(args.first_row) + size_t(row);
  std::memcpy(args.matrix + to * stride.elements, args.elements + row * stride.elements, stride.elements);
  if (args.format == Format::nvfp4) {
    std::memcpy(args.matrix + rows_scales_offset(args.out, args.in) + to * stride.scales,
                args.block_scales + row * stride.scales, stride.scales);
  }
}

/// Eight nibbles in column order to the order of a panel lane pair: even columns in the low half, odd in the high.
constexpr uint32_t split_even_odd(uint32_t nibbles) {
  uint32_t even = nibbles & 0x0f0f0f0f;
  uint32_t odd = nibbles >> 4 & 0x0f0f0f0f;
  even = (even | even >> 4) & 0x00ff00ff;
  odd = (odd | odd >> 4) & 0x00ff00ff;
  even = (even | even >> 8) & 0xffff;
  odd = (odd | odd >> 8) & 0xffff;
  return even | odd << 16;
}
static_assert(split_even_odd(0x76543210) == 0x75316420);

template <typename T>
T load(const uint8_t* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

template <typename T>
void store(uint8_t* to, T value) {
  std::memcpy(to, &value, sizeof value);
}

/// Four bytes in column order to the order of an e4m3 panel lane pair.
constexpr uint32_t swap_middle_bytes(uint32_t bytes) {
  return (bytes & 0xff0000ff) | (bytes & 0xff00) << 8 | (bytes >> 8 & 0xff00);
}

/// Writes the `count` <= 16 inputs of one row into a panel block; inputs from `count` on stay as they are (zero).
template <Format format>
void pack_block(const uint8_t* from, int32_t count, uint8_t* block, int32_t lane) {
  if constexpr (format == Format::f32) {
    for (int32_t k = 0; k < count; k++) {
      store(block + panel_element_offset(format, lane, k), load<uint32_t>(from + k * 4));
    }
  } else if constexpr (format == Format::bf16) {
    int32_t k = 0;
    for (; k + 2 <= count; k += 2) {
      store(block + panel_element_offset(format, lane, k), load<uint32_t>(from + k * 2));
    }
    if (k < count) store(block + panel_element_offset(format, lane, k), load<uint16_t>(from + k * 2));
  } else if constexpr (format == Format::e4m3) {
    int32_t k = 0;
    for (; k + 4 <= count; k += 4) {
      store(block + panel_element_offset(format, lane, k), swap_middle_bytes(load<uint32_t>(from + k)));
    }
    for (; k < count; k++) block[panel_element_offset(format, lane, k)] = from[k];
  } else {
    store(block + panel_element_offset(format, lane, 0), split_even_odd(load<uint32_t>(from)));
    store(block + panel_element_offset(format, lane, 8), split_even_odd(load<uint32_t>(from + 4)));
  }
}

/// The rows of [first, last) that one panel holds; block by block, so that the destination is written in order.
template <Format format>
void pack_panel_rows(const PackArgs& args, int32_t first, int32_t last) {
  const Source stride = source_strides(args);
  const int32_t rows = last - first;
  const int32_t lane = (args.first_row + first) % kPanelRows;
  const uint8_t* elements = args.elements + first * stride.elements;
  const uint8_t* scales = args.block_scales + first * stride.scales;
  uint8_t* block = args.matrix + size_t((args.first_row + first) / kPanelRows) * panel_bytes(format, args.in);
  for (int32_t k = 0; k < args.in; k += kBlockInputs, block += panel_block_bytes(format)) {
    const int32_t count = args.in - k < kBlockInputs ? args.in - k : kBlockInputs;
    const uint8_t* from = elements + row_bytes(format, k);
    for (int32_t row = 0; row < rows; row++) {
      pack_block<format>(from + row * stride.elements, count, block, lane + row);
    }
    if constexpr (format == Format::nvfp4) {
      for (int32_t row = 0; row < rows; row++) {
        block[kPanelScales + lane + row] = scales[row * stride.scales + k / kBlockInputs];
      }
    }
  }
}

void pack_panel(const PackArgs& args, int32_t first, int32_t last) {
  switch (args.format) {
    case Format::f32:
      return pack_panel_rows<Format::f32>(args, first, last);
    case Format::bf16:
      return pack_panel_rows<Format::bf16>(args, first, last);
    case Format::e4m3:
      return pack_panel_rows<Format::e4m3>(args, first, last);
    case Format::nvfp4:
      return pack_panel_rows<Format::nvfp4>(args, first, last);
    case Format::compact_bf16:
      break;
  }
}

/// Swaps, in all lanes, the bits of `mask` in `high` with those `shift` places further up in `low`.
void swap_bits(uint32_t* low, uint32_t* high, uint32_t mask, int shift) {
  for (int lane = 0; lane < kPanelRows; lane++) {
    const uint32_t difference = (low[lane] >> shift ^ high[lane]) & mask;
    high[lane] ^= difference;
    low[lane] ^= difference << shift;
  }
}

/// Eight words of eight nibbles each, in every lane: nibble i of word j and nibble j of word i change places.
void transpose_nibbles(uint32_t words[8][kPanelRows]) {
  for (int i = 0; i < 4; i++) swap_bits(words[i], words[i + 4], 0x0000ffff, 16);
  for (int i : {0, 1, 4, 5}) swap_bits(words[i], words[i + 2], 0x00ff00ff, 8);
  for (int i : {0, 2, 4, 6}) swap_bits(words[i], words[i + 1], 0x0f0f0f0f, 4);
}

/// The rows of [first, last) that one stretch of 128 rows holds.
void pack_column_rows(const PackArgs& args, int32_t first, int32_t last) {
  const Source stride = source_strides(args);
  const int32_t start = (args.first_row + first) % kColumnRows, end = start + last - first;
  const size_t chunk = size_t(args.first_row + first) / kColumnRows;
  const bool whole = last - first == kColumnRows;
  const uint8_t* elements = args.elements + first * stride.elements;
  const uint8_t* scales = args.block_scales + first * stride.scales;
  uint8_t* block = args.matrix;
  for (int32_t k = 0; k < args.in; k += kBlockInputs, block += column_block_bytes(args.out)) {
    for (int half = 0; half < 2; half++) {
      alignas(64) uint32_t words[8][kPanelRows] = {};
      for (int32_t row = start; row < end; row++) {
        words[row / kPanelRows][row % kPanelRows] =
            load<uint32_t>(elements + (row - start) * stride.elements + k / 2 + half * 4);
      }
      transpose_nibbles(words);
      for (int32_t column = 0; column < 8; column++) {
        uint8_t* to = block + size_t(half * 8 + column) * column_bytes(args.out) + chunk * 64;
        if (!whole) {
          // Codes of another part may stand beside these; where these go it is still zero.
          for (int lane = 0; lane < kPanelRows; lane++) words[column][lane] |= load<uint32_t>(to + lane * 4);
        }
        std::memcpy(to, words[column], 64);
      }
    }
    uint8_t* to = block + column_scales_offset(args.out) + chunk * kColumnRows;
    for (int32_t row = start; row < end; row++) {
      to[row] = scales[(row - start) * stride.scales + k / kBlockInputs];
    }
  }
}

/// The rows of [first, last) that one tile of fragments holds; element by element, as this is the specification.
void pack_fragment_rows(const PackArgs& args, int32_t first, int32_t last) {
  const Source stride = source_strides(args);
  const int32_t inputs = fragment_inputs(args.format);
  const size_t element_bytes = args.format == Format::bf16 ? 2 : 1;
  for (int32_t from = first; from < last; from++) {
    const uint8_t* elements = args.elements + from * stride.elements;
    const int32_t row = (args.first_row + from) % kFragmentRows;
    uint8_t* tile = args.matrix + size_t((args.first_row + from) / kFragmentRows) *
                                      fragment_tile_bytes(args.format, args.in);
    for (int32_t k = 0; k < args.in; k++) {
      uint8_t* unit = tile + size_t(k / inputs) * fragment_unit_bytes(args.format);
      uint8_t* to = unit + fragment_element_offset(args.format, row, k % inputs);
      if (args.format == Format::nvfp4) {
        const uint32_t code = elements[k / 2] >> (k % 2 * 4) & 15;
        store(to, load<uint32_t>(to) | fragment_code_bits(code, fragment_register(row, k % inputs), k % 2));
        if (k % kBlockInputs == 0) {
          unit[fragment_scale_offset(row, k % inputs)] =
              args.block_scales[from * stride.scales + size_t(k / kBlockInputs)];
        }
      } else {
        std::memcpy(to, elements + size_t(k) * element_bytes, element_bytes);
      }
    }
  }
}

float decode(Format format, const uint8_t* element, int nibble_shift) {
  switch (format) {
    case Format::f32:
      return load<float>(element);
    case Format::bf16:
      return bf16_to_float(load<uint16_t>(element));
    case Format::e4m3:
      return e4m3_to_float(*element);
    case Format::nvfp4:
      return e2m1_to_float(uint8_t(*element >> nibble_shift) & 15);
    case Format::compact_bf16:
      break;
  }
  return 0.0f;
}

}  // namespace

size_t packed_matrix_bytes(Format format, Layout layout, int32_t out, int32_t in) {
  if (format == Format::compact_bf16) {
    return layout == Layout::panels ? compact_panels_matrix_bytes(out, in, 0)
                                    : compact_matrix_bytes(out, in, 0);
  }
  size_t bytes = 0;
  switch (layout) {
    case Layout::rows:
      bytes = size_t(out) * row_bytes(format, in);
      if (format == Format::nvfp4) bytes += size_t(out) * (size_t(in) / kBlockInputs);
      break;
    case Layout::panels:
      bytes = size_t(round_up(out, kPanelRows) / kPanelRows) * panel_bytes(format, in);
      break;
    case Layout::columns:
      bytes = columns_matrix_bytes(out, in);
      break;
    case Layout::fragments:
      bytes = size_t(round_up(out, kFragmentRows) / kFragmentRows) * fragment_tile_bytes(format, in);
      break;
  }
  return (bytes + 63) / 64 * 64;
}

void pack(const PackArgs& args, int, int worker, int workers) {
  // Workers split where cache lines of the destination begin, so that none writes next to another.
  const int32_t unit = args.layout == Layout::columns ? kColumnRows : kPanelRows;
  int32_t first_unit = args.first_row / unit;
  int32_t units = (args.first_row + args.rows + unit - 1) / unit - first_unit;
  Range range = partition(units, worker, workers);
  for (int64_t i = range.first; i < range.last; i++) {
    int32_t start = int32_t(first_unit + i) * unit - args.first_row;
    int32_t first = start < 0 ? 0 : start;
    int32_t last = start + unit < args.rows ? start + unit : args.rows;
    for (int32_t row = first; row < last; row++) check_row(args, row);
    switch (args.layout) {
      case Layout::rows:
        for (int32_t row = first; row < last; row++) pack_row(args, row);
        break;
      case Layout::panels:
        pack_panel(args, first, last);
        break;
      case Layout::columns:
        pack_column_rows(args, first, last);
        break;
      case Layout::fragments:
        pack_fragment_rows(args, first, last);
        break;
    }
  }
}

float unpack_element(const WeightView& weight, int32_t matrix, int32_t row, int32_t column) {
  const uint8_t* data = weight.data + size_t(matrix) * weight.matrix_bytes;
  if (weight.format == Format::compact_bf16) {
    const auto element = weight.layout == Layout::panels ? compact_panel_element : compact_element;
    return bf16_to_float(element(data, weight.out, weight.in, row, column));
  }
  const uint8_t* element;
  const uint8_t* scale;
  int nibble_shift;
  if (weight.layout == Layout::panels) {
    const uint8_t* block = data + size_t(row / kPanelRows) * panel_bytes(weight.format, weight.in) +
                           size_t(column / kBlockInputs) * panel_block_bytes(weight.format);
    element = block + panel_element_offset(weight.format, row % kPanelRows, column % kBlockInputs);
    scale = block + kPanelScales + row % kPanelRows;
    nibble_shift = nvfp4_nibble_shift(column);
  } else if (weight.layout == Layout::columns) {
    const uint8_t* block = data + size_t(column / kBlockInputs) * column_block_bytes(weight.out);
    element = block + size_t(column % kBlockInputs) * column_bytes(weight.out) + column_element_offset(row);
    scale = block + column_scales_offset(weight.out) + row;
    nibble_shift = column_nibble_shift(row);
  } else if (weight.layout == Layout::fragments) {
    const int32_t inputs = fragment_inputs(weight.format);
    const int32_t in_tile = row % kFragmentRows, in_unit = column % inputs;
    const uint8_t* unit = data + size_t(row / kFragmentRows) * fragment_tile_bytes(weight.format, weight.in) +
                          size_t(column / inputs) * fragment_unit_bytes(weight.format);
    element = unit + fragment_element_offset(weight.format, in_tile, in_unit);
    if (weight.format == Format::nvfp4) {
      return e2m1_to_float(uint8_t(fragment_code(load<uint32_t>(element), in_tile, in_unit))) *
             e4m3_to_float(unit[fragment_scale_offset(in_tile, in_unit)]);
    }
    return decode(weight.format, element, 0);
  } else {
    element = data + size_t(row) * row_bytes(weight.format, weight.in) + row_bytes(weight.format, column);
    scale = data + rows_scales_offset(weight.out, weight.in) +
            size_t(row) * (size_t(weight.in) / kBlockInputs) + column / kBlockInputs;
    nibble_shift = column % 2 * 4;
  }
  float value = decode(weight.format, element, nibble_shift);
  return weight.format == Format::nvfp4 ? value * e4m3_to_float(*scale) : value;
}

}  // namespace nibblet
