#include "kernels/pack/pack.h"

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
  bool any = false;
  for (size_t i = 0; i < count; i++) any |= e4m3_is_nan(bytes[i]) | (is_scale && bytes[i] >= 0x80);
  if (!any) return;
  for (size_t i = 0; i < count; i++) {
    if (e4m3_is_nan(bytes[i]) || (is_scale && bytes[i] >= 0x80)) {
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

/// Writes the `count` <= 16 inputs of one row into a panel block; inputs from `count` on stay as they are (zero).
void pack_block(Format format, const uint8_t* from, int32_t count, uint8_t* block, int32_t lane) {
  switch (format) {
    case Format::f32:
      for (int32_t k = 0; k < count; k++) {
        store(block + panel_element_offset(format, lane, k), load<uint32_t>(from + k * 4));
      }
      break;
    case Format::bf16:
      for (int32_t k = 0; k + 2 <= count; k += 2) {
        store(block + panel_element_offset(format, lane, k), load<uint32_t>(from + k * 2));
      }
      if (count % 2) {
        store(block + panel_element_offset(format, lane, count - 1), load<uint16_t>(from + (count - 1) * 2));
      }
      break;
    case Format::e4m3:
      for (int32_t k = 0; k < count; k++) block[panel_element_offset(format, lane, k)] = from[k];
      break;
    case Format::nvfp4:
      store(block + panel_element_offset(format, lane, 0), split_even_odd(load<uint32_t>(from)));
      store(block + panel_element_offset(format, lane, 8), split_even_odd(load<uint32_t>(from + 4)));
      break;
  }
}

/// The rows of [first, last) that one panel holds; block by block, so that the destination is written in order.
void pack_panel_rows(const PackArgs& args, int32_t first, int32_t last) {
  Source stride = source_strides(args);
  int32_t lane = (args.first_row + first) % kPanelRows;
  uint8_t* block =
      args.matrix + size_t((args.first_row + first) / kPanelRows) * panel_bytes(args.format, args.in);
  for (int32_t k = 0; k < args.in; k += kBlockInputs, block += panel_block_bytes(args.format)) {
    int32_t count = args.in - k < kBlockInputs ? args.in - k : kBlockInputs;
    const uint8_t* from = args.elements + first * stride.elements + row_bytes(args.format, k);
    for (int32_t row = first; row < last; row++, from += stride.elements) {
      pack_block(args.format, from, count, block, lane + row - first);
    }
    if (args.format != Format::nvfp4) continue;
    const uint8_t* scale = args.block_scales + first * stride.scales + k / kBlockInputs;
    for (int32_t row = first; row < last; row++, scale += stride.scales) {
      block[kPanelScales + lane + row - first] = *scale;
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
      pack_panel_rows(args, first, last);
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
