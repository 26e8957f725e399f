#include "kernels/linear/linear.h"

#include <algorithm>
#include <cmath>

#include "kernels/linear/matmul.h"
#include "kernels/numerics/dot.h"
#include "kernels/numerics/nvfp4.h"
#include "kernels/numerics/partition.h"
#include "kernels/numerics/rows.h"
#include "kernels/pack/compact_panels.h"
#include "kernels/simd/dispatch.h"

namespace nibblet {
namespace {

/// Outputs and tokens of one call of the inner product: the products of a tile wait on the stack (16 KiB) for the
/// epilogue, and the weights of a chunk stay in the cache while the tiles of tokens pass.
constexpr int32_t kChunkOutputs = 64;
constexpr int32_t kTileTokens = 64;

int32_t token_of(const LinearArgs& args, int32_t row) { return args.rows ? args.rows[row].token : row; }

NIBBLET_VECTORIZED inline void load_row(const LinearArgs& args, int32_t token, float* to) {
  int64_t start = int64_t(token) * args.x_stride;
  int32_t in = args.weight.in;
  if (args.x_type == DType::bf16) {
    const uint16_t* from = static_cast<const uint16_t*>(args.x) + start;
    for (int32_t k = 0; k < in; k++) to[k] = bf16_to_float(from[k]);
  } else {
    const float* from = static_cast<const float*>(args.x) + start;
    for (int32_t k = 0; k < in; k++) to[k] = from[k];
  }
  for (int32_t k = in; k < round_up(in, kBlockInputs); k++) to[k] = 0.0f;
}

int32_t blocks_of(const LinearArgs& args) { return round_up(args.weight.in, kBlockInputs) / kBlockInputs; }

BfpBlock* prepared_blocks(const LinearArgs& args) {
  return reinterpret_cast<BfpBlock*>(args.prepared + int64_t(args.count) * linear_row_floats(args.weight.in));
}

const BfpKernels* bfp_kernels(const LinearArgs& args) { return args.exact ? nullptr : plan_bfp(args.weight); }

NIBBLET_VECTORIZED inline void prepare(const LinearArgs& args, const BfpKernels* bfp, int32_t row) {
  const int32_t in = args.weight.in, blocks = blocks_of(args), padded = blocks * kBlockInputs;
  float* x = args.prepared + int64_t(row) * linear_row_floats(in);
  load_row(args, token_of(args, row), x);
  if (args.norm) {
    float mean = dot(x, x, in) / float(in);
    float scale = 1.0f / std::sqrt(mean + args.epsilon);
    for (int32_t k = 0; k < in; k++) x[k] = x[k] * scale * args.norm[k];
  }
  if (args.quantize_input) {
    for (int32_t k = 0; k < padded; k += kNvfp4Block) {
      uint8_t codes[kNvfp4Block];
      float scale = e4m3_to_float(quantize_nvfp4_block(x + k, args.weight.input_scale, codes));
      for (int32_t i = 0; i < kNvfp4Block; i++) x[k + i] = e2m1_to_float(codes[i]) * scale;
    }
  } else if (!args.exact) {
    round_to_bf16(x, in);
  }
  if (args.weight.format == Format::compact_bf16) {
    for (int32_t k = 0; k < in; k++) x[k] *= kCompactInputScale;
  }
  if (bfp) bfp->from_floats(x, blocks, prepared_blocks(args) + int64_t(row) * blocks);
}

/// Writes outputs [first, last) of one row of y from their raw products, which it overwrites.
NIBBLET_VECTORIZED inline void finish(const LinearArgs& args, int32_t row, float* products, int32_t first,
                                      int32_t last) {
  const int64_t start = int64_t(row) * args.y_stride + first;
  const int32_t count = last - first;
  if (args.quantize_input) {
    for (int32_t i = 0; i < count; i++) products[i] *= args.weight.input_scale;
  }
  if (args.bias) {
    for (int32_t i = 0; i < count; i++) products[i] += args.bias[first + i];
  }
  if (args.activation == Activation::relu2) relu2(products, count);
  if (args.y_type == DType::bf16) {
    store_bf16(products, count, static_cast<uint16_t*>(args.y) + start);
    return;
  }
  float* y = static_cast<float*>(args.y) + start;
  if (args.add) {
    for (int32_t i = 0; i < count; i++) y[i] += products[i];
  } else {
    std::copy(products, products + count, y);
  }
}

/// Outputs [first, last) from rows of x̂ in the form that `matmul` reads, `stride` elements apart.
template <typename Product, typename Element>
void multiply(const LinearArgs& args, Product matmul, const Element* prepared, int32_t stride, int32_t first,
              int32_t last) {
  alignas(64) float products[kTileTokens][kChunkOutputs];
  const Element* x[kTileTokens];
  float* y[kTileTokens];
  for (int32_t m = 0; m < kTileTokens; m++) y[m] = products[m];
  for (int32_t n = first; n < last; n += kChunkOutputs) {
    int32_t end = n + kChunkOutputs < last ? n + kChunkOutputs : last;
    for (int32_t row = 0; row < args.count; row += kTileTokens) {
      int32_t tile = args.count - row < kTileTokens ? args.count - row : kTileTokens;
      for (int32_t m = 0; m < tile; m++) x[m] = prepared + int64_t(row + m) * stride;
      matmul(args.weight, 0, x, tile, n, end, y);
      run_vectorized([&]() NIBBLET_VECTORIZED {
        for (int32_t m = 0; m < tile; m++) finish(args, row + m, products[m], n, end);
      });
    }
  }
}

}  // namespace

void linear(const LinearArgs& args, int phase, int worker, int workers) {
  const BfpKernels* bfp = bfp_kernels(args);
  if (phase == 0) {
    Range range = partition(args.count, worker, workers);
    run_vectorized([&]() NIBBLET_VECTORIZED {
      for (int64_t row = range.first; row < range.last; row++) prepare(args, bfp, int32_t(row));
    });
  } else {
    Range range = partition(round_up(args.weight.out, kPanelRows) / kPanelRows, worker, workers);
    int32_t first = int32_t(range.first) * kPanelRows;
    int32_t last = int32_t(range.last) * kPanelRows;
    last = last < args.weight.out ? last : args.weight.out;
    if (bfp) {
      multiply(args, bfp->matmul, prepared_blocks(args), blocks_of(args), first, last);
    } else {
      multiply(args, plan_matmul(args.weight), args.prepared, linear_row_floats(args.weight.in), first, last);
    }
  }
}

}  // namespace nibblet
