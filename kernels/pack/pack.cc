#include "kernels/pack/pack.h"

#include <algorithm>
#include <cstring>

#include "kernels/numerics/bf16.h"
#include "kernels/numerics/e2m1.h"
#include "kernels/numerics/e4m3.h"
#include "kernels/numerics/partition.h"
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
  }
  return 0.0f;
}

}  // namespace

size_t packed_matrix_bytes(Format format, Layout layout, int32_t out, int32_t in) {
  size_t bytes = layout == Layout::panels
                     ? size_t(round_up(out, kPanelRows) / kPanelRows) * panel_bytes(format, in)
                     : size_t(out) * row_bytes(format, in) +
                           (format == Format::nvfp4 ? size_t(out) * (size_t(in) / kBlockInputs) : 0);
  return (bytes + 63) / 64 * 64;
}

void pack(const PackArgs& args, int, int worker, int workers) {
  // Workers split at panel boundaries of the destination, so that none writes next to another.
  int32_t first_panel = args.first_row / kPanelRows;
  int32_t panels = (args.first_row + args.rows + kPanelRows - 1) / kPanelRows - first_panel;
  Range range = partition(panels, worker, workers);
  for (int64_t panel = range.first; panel < range.last; panel++) {
    int32_t start = int32_t(first_panel + panel) * kPanelRows - args.first_row;
    int32_t first = start < 0 ? 0 : start;
    int32_t last = start + kPanelRows < args.rows ? start + kPanelRows : args.rows;
    for (int32_t row = first; row < last; row++) check_row(args, row);
    if (args.layout == Layout::panels) {
      pack_panel(args, first, last);
    } else {
      for (int32_t row = first; row < last; row++) pack_row(args, row);
    }
  }
}

float unpack_element(const WeightView& weight, int32_t matrix, int32_t row, int32_t column) {
  const uint8_t* data = weight.data + size_t(matrix) * weight.matrix_bytes;
  const uint8_t* element;
  const uint8_t* scale;
  int nibble_shift;
  if (weight.layout == Layout::panels) {
    const uint8_t* block = data + size_t(row / kPanelRows) * panel_bytes(weight.format, weight.in) +
                           size_t(column / kBlockInputs) * panel_block_bytes(weight.format);
    element = block + panel_element_offset(weight.format, row % kPanelRows, column % kBlockInputs);
    scale = block + kPanelScales + row % kPanelRows;
    nibble_shift = nvfp4_nibble_shift(column);
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
