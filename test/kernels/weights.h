#pragma once

#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "kernels/pack/pack.h"
#include "kernels/weight.h"

/// Random weights for tests: the bytes a checkpoint would hold, their values in float64 (decoded here, without the
/// kernels' own conversions), and packed copies.
namespace nibblet::test {

constexpr Format kFormats[] = {Format::f32, Format::bf16, Format::e4m3, Format::nvfp4};

inline const char* name_of(Format format) {
  constexpr const char* kNames[] = {"f32", "bf16", "e4m3", "nvfp4", "compact bf16"};
  return kNames[int(format)];
}

/// Those that a format can have.
inline std::vector<Layout> layouts(Format format) {
  std::vector<Layout> all = {Layout::rows, Layout::panels};
  if (format == Format::nvfp4) all.push_back(Layout::columns);
  return all;
}

inline double e4m3_value(uint8_t bits) {
  // Oracles of the real model's shapes ask for hundreds of millions.
  static const std::vector<double> values = [] {
    std::vector<double> all;
    for (int code = 0; code < 256; code++) {
      int exponent = code >> 3 & 15, mantissa = code & 7;
      double magnitude = exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
      all.push_back(code & 0x80 ? -magnitude : magnitude);
    }
    return all;
  }();
  return values[bits];
}

inline double e2m1_value(int code) {
  constexpr double kValues[] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
  return code & 8 ? -kValues[code & 7] : kValues[code & 7];
}

inline double bf16_value(uint16_t bits) {
  uint32_t wide = uint32_t{bits} << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}

/// The layouts that a GPU packs.
inline std::vector<Layout> gpu_layouts(Format format) {
  std::vector<Layout> all = {Layout::rows};
  if (format != Format::f32) all.push_back(Layout::fragments);
  if (format == Format::nvfp4) all.push_back(Layout::columns);
  return all;
}

/// A checkpoint tensor of [out, in] with finite elements.
struct RandomWeight {
  Format format;
  int32_t out;
  int32_t in;
  std::vector<uint8_t> elements;
  std::vector<uint8_t> block_scales;
  std::vector<float> row_scales;

  RandomWeight(Format format, int32_t out, int32_t in, uint32_t seed) : format(format), out(out), in(in) {
    std::mt19937 random(seed);
    size_t count = size_t(out) * size_t(in);
    switch (format) {
      case Format::f32:
        elements.resize(count * 4);
        for (size_t i = 0; i < count; i++) {
          float value = std::ldexp(float(int32_t(random())), -31);
          std::memcpy(&elements[i * 4], &value, 4);
        }
        break;
      case Format::bf16:
        elements.resize(count * 2);
        for (size_t i = 0; i < count; i++) {
          uint32_t bits = random();
          // Exponents from 2⁻¹⁵ to 1.
          uint16_t element = uint16_t((bits & 0x807f) | (112 + (bits >> 16 & 15)) << 7);
          std::memcpy(&elements[i * 2], &element, 2);
        }
        break;
      case Format::e4m3:
        elements.resize(count);
        for (size_t i = 0; i < count; i++) {
          uint8_t element = uint8_t(random());
          if ((element & 0x7f) == 0x7f) element ^= 1;
          elements[i] = element;
        }
        break;
      case Format::nvfp4:
        elements.resize(count / 2);
        block_scales.resize(count / 16);
        for (uint8_t& byte : elements) byte = uint8_t(random());
        // Every finite scale occurs, zero and subnormals included.
        for (uint8_t& byte : block_scales) byte = uint8_t(random() % 0x7f);
        break;
      case Format::compact_bf16:  // is made of bf16
        break;
    }
    for (int32_t n = 0; n < out; n++)
      row_scales.push_back(std::ldexp(1.0f + float(random() % 1000) / 999, -7));
  }

  /// Element times block scale, without the row scale.
  double value(int32_t row, int32_t column) const {
    size_t i = size_t(row) * size_t(in) + size_t(column);
    switch (format) {
      case Format::f32: {
        float value;
        std::memcpy(&value, &elements[i * 4], 4);
        return value;
      }
      case Format::bf16: {
        uint16_t bits;
        std::memcpy(&bits, &elements[i * 2], 2);
        return bf16_value(bits);
      }
      case Format::e4m3:
        return e4m3_value(elements[i]);
      case Format::nvfp4:
        return e2m1_value(elements[i / 2] >> (i % 2 * 4) & 15) * e4m3_value(block_scales[i / 16]);
      case Format::compact_bf16:
        break;
    }
    return 0;
  }
};

/// 64-byte aligned bytes between guards that must not change.
class GuardedBytes {
 public:
  explicit GuardedBytes(size_t size, uint8_t fill = 0) : size_(size), storage_(size + 256, kGuard) {
    uintptr_t start = reinterpret_cast<uintptr_t>(storage_.data()) + 64;
    offset_ = (start + 63) / 64 * 64 - (start - 64);
    std::memset(data(), fill, size);
  }
  uint8_t* data() { return storage_.data() + offset_; }
  template <typename T>
  T* as() {
    return reinterpret_cast<T*>(data());
  }
  size_t size() const { return size_; }
  bool guards_intact() const {
    for (size_t i = 0; i < storage_.size(); i++) {
      if ((i < offset_ || i >= offset_ + size_) && storage_[i] != kGuard) return false;
    }
    return true;
  }

 private:
  static constexpr uint8_t kGuard = 0xa5;
  size_t size_;
  size_t offset_;
  std::vector<uint8_t> storage_;
};

/// A packed copy of one random weight.
struct PackedWeight {
  GuardedBytes bytes;
  WeightView view;

  PackedWeight(const RandomWeight& source, Layout layout, int workers = 1)
      : bytes(packed_matrix_bytes(source.format, layout, source.out, source.in)) {
    std::atomic<int64_t> bad{0};
    PackArgs args = {source.format,
                     layout,
                     source.out,
                     source.in,
                     0,
                     source.out,
                     source.elements.data(),
                     source.block_scales.empty() ? nullptr : source.block_scales.data(),
                     bytes.data(),
                     &bad};
    for (int worker = 0; worker < workers; worker++) pack(args, 0, worker, workers);
    view = {source.format,
            layout,
            1,
            source.out,
            source.in,
            bytes.data(),
            bytes.size(),
            source.row_scales.data(),
            0};
  }
};

/// Half the distance between a float32 and its neighbour.
inline double half_ulp(double value) {
  float magnitude = std::fabs(float(value));
  return (double(std::nextafter(magnitude, std::numeric_limits<float>::infinity())) - double(magnitude)) / 2;
}

/// The bound of docs: half an output ulp + 4 · √K · 2⁻²⁴ · Σ |aᵢ bᵢ|.
inline double dot_bound(double exact, double sum_of_magnitudes, int32_t terms) {
  return half_ulp(exact) + 4 * std::sqrt(double(terms)) * 0x1p-24 * sum_of_magnitudes;
}

}  // namespace nibblet::test
