#pragma once

#include "kernels/cuda/device.h"
#include "kernels/moe/plan.h"

namespace nibblet {

/// Adds the parts of one row of a token to x, in order.
__device__ inline void moe_combine_row(const MoePlan& plan, size_t token, int32_t row) {
  const size_t hidden = size_t(plan.args.hidden);
  if (row >= plan.args.hidden) return;
  const float* from = plan.outputs + token * size_t(plan.parts) * hidden + size_t(row);
  float sum = 0;
#pragma unroll 8
  for (int32_t part = 0; part < plan.parts; ++part) sum += __ldcg(from + size_t(part) * hidden);
  plan.args.x[token * hidden + size_t(row)] += sum;
}

}  // namespace nibblet
