#pragma once

#include <memory>

#include "kernels/pack/cuda.h"
#include "test/cuda/device.h"
#include "test/kernels/compact_rows.h"

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

}  // namespace nibblet::test
