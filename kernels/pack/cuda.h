#pragma once

#include "kernels/cuda/launch.h"
#include "kernels/pack/compact.h"
#include "kernels/pack/pack.h"

namespace nibblet {

/// pack() on CUDA: elements, block_scales and matrix are device memory. args.bad is not used: the caller checks scales.
/// Layouts rows, columns and fragments; the sources may be unaligned.
cudaError_t pack_cuda(const PackArgs& args, const CudaTarget& target);

/// What compact_bf16 would make of a matrix.
struct CompactTotals {
  uint64_t exceptions;
  uint64_t listed;  ///< those behind the first two of their rows
  uint32_t most_in_row;
};

/// Finds the best base of each row of a bf16 matrix in Layout::fragments, and the exceptions that leaves.
/// @param rows  one for each row up to whole tiles: written but for `first`
/// @param totals  one; rows[...].more wraps where `listed` is not below 2^32
cudaError_t compact_survey_cuda(const uint8_t* matrix, int32_t out, int32_t in, CompactRow* rows,
                                CompactTotals* totals, const CudaTarget& target);
/// Makes the compact matrix, compact_matrix_bytes(out, in, listed), of one with at most kCompactMostInputs inputs. Both stay:
/// they do not overlap.
/// @param rows  as compact_survey_cuda wrote them
cudaError_t compact_cuda(const uint8_t* matrix, int32_t out, int32_t in, const CompactRow* rows,
                         uint8_t* compact, const CudaTarget& target);

}  // namespace nibblet
