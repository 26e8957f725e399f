#pragma once

#include "kernels/cuda/device.h"
#include "kernels/linear/linear.h"
#include "kernels/linear/stage.cuh"
#include "kernels/numerics/bf16.h"

/// What the kernels of linear are given, and how they end.
namespace nibblet {

/// What happens to a sum, and where it goes.
struct Epilogue {
  const float* row_scales;  ///< [out]
  const float* bias;        ///< [out] or null
  void* y;
  int64_t y_stride;
  int32_t out;
  DType y_type;
  Activation activation;
  bool add;
};

/// One linear on the device.
struct LinearTask {
  const uint8_t* weight;
  int32_t tiles;     ///< row tiles of 16 (fragments)
  int32_t units;     ///< units of inputs in a tile (fragments)
  int32_t capacity;  ///< most rows of y
  bool selected;     ///< the rows are those of step->rows
  const Step* step;
  Prologue prologue;
  Epilogue epilogue;
  uint8_t* prepared;   ///< x̂ of all rows, for kernels that do not make it themselves
  float* parts;        ///< sums of blocks that share inputs (TokensPlan::cuts)
  uint32_t* counters;  ///< how many such blocks have arrived
};

/// Rows of y that the step has.
__device__ __forceinline__ int32_t live_rows(const LinearTask& task) {
  const int32_t rows = task.selected ? task.step->row_count : task.step->tokens;
  return rows < task.capacity ? rows : task.capacity;
}

/// The row of x behind a row of y that the step has.
__device__ __forceinline__ int64_t token_of(const LinearTask& task, int32_t row) {
  return task.selected ? task.step->rows[row].token : row;
}

/// What the epilogue of an output reads of the weight: constants, which may be read before the dependency wait.
struct OutputConstants {
  float scale = 0, bias = 0;
  __device__ __forceinline__ OutputConstants(const Epilogue& epilogue, int32_t n) {
    if (n >= epilogue.out) return;
    scale = epilogue.row_scales[n];
    if (epilogue.bias != nullptr) bias = epilogue.bias[n];
  }
};

/// What y holds where the sum is to be added.
__device__ __forceinline__ float output_before(const Epilogue& epilogue, int32_t row, int32_t n) {
  if (!epilogue.add || n >= epilogue.out) return 0;
  return static_cast<const float*>(epilogue.y)[row * epilogue.y_stride + n];
}

__device__ __forceinline__ float output_value(const Epilogue& epilogue, const OutputConstants& constants,
                                              float sum) {
  float value = sum * constants.scale;
  if (epilogue.bias != nullptr) value += constants.bias;
  // Not a maximum with 0: a NaN must stay one.
  if (epilogue.activation == Activation::relu2) value = value < 0.0f ? 0.0f : value * value;
  return value;
}

__device__ __forceinline__ void write_output(const Epilogue& epilogue, const OutputConstants& constants,
                                             int32_t row, int32_t n, float sum, float before) {
  const float value = output_value(epilogue, constants, sum);
  const int64_t at = row * epilogue.y_stride + n;
  if (epilogue.y_type == DType::bf16) {
    static_cast<uint16_t*>(epilogue.y)[at] = bf16_from_float(value);
  } else {
    static_cast<float*>(epilogue.y)[at] = epilogue.add ? before + value : value;
  }
}

}  // namespace nibblet
