#pragma once

#include <memory>
#include <string>
#include <vector>

#include "native/runtime/byte_source.h"
#include "native/runtime/tensor.h"
#include "native/runtime/weight.h"

namespace nibblet {

/// Where a tensor lies in a file. `name` is for messages.
struct FileTensor {
  std::shared_ptr<ByteSource> file;
  size_t offset = 0;
  DType dtype = DType::f32;
  std::string name;

  explicit operator bool() const { return file != nullptr; }
};

/// Copies a whole tensor: same dtype bit for bit, or f16/bf16 widened to f32. Throws INVALID_OPTION for other pairs.
std::unique_ptr<Command> load_tensor(const Tensor& to, const FileTensor& from);

/// One part of a weight: `rows` rows of matrix `matrix` from row `first_row`.
struct WeightPart {
  int32_t matrix;
  int32_t first_row;
  int32_t rows;
  FileTensor elements;      ///< f32, f16, bf16 or e4m3 [rows, in], or u8 codes [rows, in / 2]
  FileTensor block_scales;  ///< nvfp4: e4m3 [rows, in / 16]
  FileTensor row_scales;    ///< optional f32 or bf16 [rows]; otherwise every row has `scale`
  float scale;
  float input_scale;  ///< multiplier form, 0 when there is none; the largest of a weight's parts counts
};

/// Packs parts, in this order. A GPU reads many of one call at a time: those of a weight belong in one. Fails with BAD_FORMAT
/// naming tensor and file on NaN or negative scales, and when a file cannot be read any more.
std::unique_ptr<Command> load_weight(std::shared_ptr<Weight> weight, std::vector<WeightPart> parts);
std::unique_ptr<Command> load_weight(std::shared_ptr<Weight> weight, const WeightPart& part);

/// Makes a bf16 matrix compact (kernels/pack/compact.h) once all its parts are loaded, where that saves a sixth of its bytes,
/// leaves few exceptions and is read faster by this processor, and there is memory for both; otherwise it stays as it is. Runs
/// once, outside of graphs. Throws INVALID_OPTION for other weights and for ones in use; until the command is done, ops and parts are refused. Parts that the same stream
/// was given before need no sync; while others are pending the command fails with INVALID_OPTION.
std::unique_ptr<Command> compact_weight(std::shared_ptr<Weight> weight);

}  // namespace nibblet
