#pragma once

#include <memory>
#include <random>

#include "kernels/pack/cuda.h"
#include "test/cuda/device.h"
#include "test/kernels/weights.h"

/// compact_bf16 weights for tests.
namespace nibblet::test {

/// A matrix that was bf16 in fragments, on the device, and is compact now.
struct DeviceCompact {
  CompactTotals totals;
  std::unique_ptr<DeviceArray<CompactRow>> rows;
  std::unique_ptr<DeviceArray<uint8_t>> matrix;

  DeviceCompact(const uint8_t* fragments, int32_t out, int32_t in) {
    rows = std::make_unique<DeviceArray<CompactRow>>(size_t(round_up(out, kFragmentRows)));
    const DeviceArray<CompactTotals> found(1);
    check_cuda(compact_survey_cuda(fragments, out, in, rows->data(), found.data(), cuda_target()),
               "compact_survey_cuda");
    totals = found.read()[0];
    matrix = std::make_unique<DeviceArray<uint8_t>>(compact_matrix_bytes(out, in, size_t(totals.listed)), 0);
    check_cuda(compact_cuda(fragments, out, in, rows->data(), matrix->data(), cuda_target()), "compact_cuda");
    cuda_sync();
  }
};

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

}  // namespace nibblet::test
