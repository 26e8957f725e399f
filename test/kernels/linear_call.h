#pragma once

#include <utility>
#include <vector>

#include "kernels/linear/linear.h"
#include "kernels/linear/matmul.h"
#include "kernels/numerics/bf16.h"
#include "kernels/pack/compact_panels.h"
#include "test/kernels/bfp_bound.h"
#include "test/kernels/harness.h"
#include "test/kernels/inputs.h"
#include "test/kernels/weights.h"

namespace nibblet::test {

/// One call of linear with buffers of its own; fields may be changed before run().
struct LinearCall {
  RandomWeight source;
  PackedWeight weight;
  int32_t count;
  std::vector<float> x;
  std::vector<uint16_t> x_bf16;
  std::vector<float> norm;
  std::vector<float> bias;
  GuardedBytes prepared;
  GuardedBytes y;
  LinearArgs args{};

  LinearCall(Format format, Layout layout, int32_t out, int32_t in, int32_t count, DType y_type = DType::f32)
      : source(format, out, in, 21),
        weight(source, layout),
        count(count),
        x(random_floats(size_t(count) * size_t(in), 22)),
        norm(random_floats(size_t(in), 23)),
        bias(random_floats(size_t(out), 24)),
        prepared(linear_scratch_bytes(count, in), 0xff),
        y(size_t(count) * size_t(out) * dtype_bytes(y_type), 0xff) {
    for (float value : x) x_bf16.push_back(bf16_from_float(value));
    args.x = x.data();
    args.x_type = DType::f32;
    args.x_stride = in;
    args.count = count;
    args.epsilon = 1e-5f;
    args.weight = weight.view;
    args.y = y.data();
    args.y_type = y_type;
    args.y_stride = out;
    args.prepared = prepared.as<float>();
  }

  void run(int workers = 2) {
    for (int phase = 0; phase < kLinearPhases; phase++) {
      for (int worker = 0; worker < workers; worker++) linear(args, phase, worker, workers);
    }
    CHECK(prepared.guards_intact());
    CHECK(y.guards_intact());
  }

  bool block_floating_point() const { return !args.exact && plan_bfp(args.weight) != nullptr; }

  float prepared_at(int32_t row, int32_t k) {
    const int32_t stride = linear_row_floats(source.in),
                  blocks = round_up(source.in, kBlockInputs) / kBlockInputs;
    if (block_floating_point()) {
      const float* behind = prepared.as<float>() + int64_t(args.count) * stride;
      const BfpBlock* row_blocks = reinterpret_cast<const BfpBlock*>(behind) + int64_t(row) * blocks;
      return bfp_at(row_blocks[k / kBlockInputs], k % kBlockInputs);
    }
    const float scale = args.weight.format == Format::compact_bf16 ? kCompactInputScale : 1.0f;
    return prepared.as<float>()[int64_t(row) * stride + k] / scale;
  }

  float y_at(int32_t row, int32_t n) {
    int64_t index = int64_t(row) * args.y_stride + n;
    return args.y_type == DType::bf16 ? bf16_to_float(y.as<uint16_t>()[index]) : y.as<float>()[index];
  }

  /// The product of the prepared inputs in float64, and its error bound.
  std::pair<double, double> product(int32_t row, int32_t n) {
    double sum = 0, magnitudes = 0;
    for (int32_t k = 0; k < source.in; k++) {
      double term = double(prepared_at(row, k)) * source.value(n, k);
      sum += term;
      magnitudes += std::fabs(term);
    }
    double scale = source.row_scales[size_t(n)];
    return {sum * scale, dot_bound(sum * scale, magnitudes * scale, source.in)};
  }
};

}  // namespace nibblet::test
