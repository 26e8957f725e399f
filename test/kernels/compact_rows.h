#pragma once

#include <random>

#include "kernels/pack/compact_panels.h"
#include "test/kernels/weights.h"

/// bf16 weights that are to be made compact.
namespace nibblet::test {

inline uint16_t bf16_bits(double value) {
  const float wide = float(value);
  uint32_t bits;
  std::memcpy(&bits, &wide, sizeof bits);
  return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/// Gives a bf16 weight normally distributed elements, as trained ones are more or less: one in 9,000 is an exception.
inline void make_normal(RandomWeight& weight, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal(0, 1 / std::sqrt(double(weight.in)));
  for (size_t i = 0; i < weight.elements.size(); i += 2) {
    const uint16_t bits = bf16_bits(normal(random));
    std::memcpy(&weight.elements[i], &bits, sizeof bits);
  }
}

inline RandomWeight normal_rows(int32_t out, int32_t in) {
  RandomWeight rows(Format::bf16, out, in, 1);
  make_normal(rows, 2);
  return rows;
}

inline uint16_t& element(RandomWeight& rows, int32_t n, int32_t k) {
  return reinterpret_cast<uint16_t*>(rows.elements.data())[size_t(n) * size_t(rows.in) + size_t(k)];
}

/// Rows without exceptions, with one, two, three and 40 of them, in turns; zeros, subnormals and whole rows of zeros too.
inline RandomWeight awkward_rows(int32_t out, int32_t in) {
  RandomWeight weight(Format::bf16, out, in, 5);
  std::mt19937 random(6);
  for (int32_t n = 0; n < out; n++) {
    // Windows of different rows lie elsewhere.
    const uint32_t exponent = 100 + uint32_t(n % 30);
    for (int32_t k = 0; k < in; k++) {
      const uint32_t bits = uint32_t(random());
      element(weight, n, k) = uint16_t((bits & 0x807f) | (exponent + (bits >> 16) % 13) << 7);
      if (bits >> 28 == 0 || n % 7 == 6) element(weight, n, k) = uint16_t(bits & 0x8000);
    }
    constexpr int kCounts[] = {0, 1, 2, 3, 40};
    for (int i = 0; i < kCounts[n % 5]; i++) {
      const uint32_t bits = uint32_t(random());
      // Far above, far below, and subnormal.
      const uint32_t far = i % 3 == 0 ? exponent + 17 : i % 3 == 1 ? exponent - 80 : 0;
      element(weight, n, int32_t(bits % uint32_t(in))) = uint16_t((bits & 0x8000) | far << 7 | 0x2a);
    }
  }
  return weight;
}

/// A bf16 matrix in panels, made compact.
struct CompactPanels {
  PackedWeight plain;
  std::vector<CompactPanel> panels;
  uint64_t exceptions;
  GuardedBytes bytes;
  WeightView view;

  explicit CompactPanels(const RandomWeight& source, int workers = 1)
      : plain(source, Layout::panels),
        panels(size_t(round_up(source.out, kPanelRows) / kPanelRows)),
        exceptions(survey(source, workers)),
        bytes(compact_panels_matrix_bytes(source.out, source.in, exceptions)),
        view(plain.view) {
    CompactPanelsArgs args = {plain.bytes.data(), source.out, source.in, panels.data(), bytes.data()};
    for (int worker = 0; worker < workers; worker++) compact_panels(args, 0, worker, workers);
    view.format = Format::compact_bf16;
    view.data = bytes.data();
    view.matrix_bytes = bytes.size();
  }

 private:
  uint64_t survey(const RandomWeight& source, int workers) {
    CompactPanelsArgs args = {plain.bytes.data(), source.out, source.in, panels.data(), nullptr};
    for (int worker = 0; worker < workers; worker++) survey_compact_panels(args, 0, worker, workers);
    return place_compact_exceptions(panels.data(), int32_t(panels.size()));
  }
};

}  // namespace nibblet::test
