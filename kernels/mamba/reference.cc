#include <algorithm>

#include "kernels/mamba/shape.h"
#include "kernels/numerics/dot.h"
#include "kernels/numerics/element.h"
#include "kernels/numerics/partition.h"

namespace nibblet {
namespace {

void convolve(const MambaArgs& args, const Sequence& sequence, int32_t channel) {
  const MambaShape shape(args);
  const int32_t history = args.kernel - 1;
  const size_t state = (size_t(sequence.slot) * shape.channels + channel) * history;
  // Input `time` of this step's chunk; the history has negative times.
  const auto input = [&](int32_t time) {
    if (time >= 0)
      return read_element(args.projected, args.type, shape.channel_row(sequence.first + time) + channel);
    if (sequence.position == 0) return 0.0f;
    return read_element(args.conv_state, args.type, state + history + time);
  };
  for (int32_t time = 0; time < sequence.count; ++time) {
    float sum = args.conv_bias == nullptr ? 0 : args.conv_bias[channel];
    for (int32_t tap = 0; tap < args.kernel; ++tap) {
      sum += args.conv_weight[size_t(channel) * args.kernel + tap] * input(time - history + tap);
    }
    args.convolved[size_t(sequence.first + time) * shape.channels + channel] = silu(sum);
  }
  // Oldest first: an element moves towards the front, so none is overwritten before it was read.
  for (int32_t i = 0; i < history; ++i) {
    write_element(args.conv_state, args.type, state + i, input(sequence.count - history + i));
  }
}

void scan(const MambaArgs& args, const Sequence& sequence, int32_t head) {
  const MambaShape shape(args);
  const int32_t group = head / (args.heads / args.groups);
  float* state = args.ssm_state + (size_t(sequence.slot) * args.heads + head) * args.head_dim * args.state;
  if (sequence.position == 0) std::fill(state, state + size_t(args.head_dim) * args.state, 0.0f);
  const float a = -std::exp(args.a_log[head]);
  for (int32_t t = sequence.first; t < sequence.first + sequence.count; ++t) {
    const float* x = args.convolved + size_t(t) * shape.channels + head * args.head_dim;
    const float* b = args.convolved + size_t(t) * shape.channels + shape.inner + group * args.state;
    const float* c = b + args.groups * args.state;
    const float dt =
        softplus(read_element(args.projected, args.type, shape.dt_row(t) + head) + args.dt_bias[head]);
    const float decay = std::exp(a * dt);
    for (int32_t i = 0; i < args.head_dim; ++i) {
      float* s = state + size_t(i) * args.state;
      const float input = dt * x[i];
      for (int32_t n = 0; n < args.state; ++n) s[n] = decay * s[n] + input * b[n];
      args.scanned[size_t(t) * shape.inner + head * args.head_dim + i] =
          dot(s, c, args.state) + args.d[head] * x[i];
    }
  }
}

void gate_and_normalise(const MambaArgs& args, int32_t token, int32_t group) {
  const MambaShape shape(args);
  const int32_t width = shape.inner / args.groups;
  const int32_t first = group * width;
  float* v = args.scanned + size_t(token) * shape.inner + first;
  for (int32_t i = 0; i < width; ++i) {
    v[i] *= silu(read_element(args.projected, args.type, size_t(token) * shape.row + first + i));
  }
  const float inverse = 1 / std::sqrt(dot(v, v, width) / float(width) + args.epsilon);
  for (int32_t i = 0; i < width; ++i) {
    write_element(args.y, args.type, size_t(token) * shape.inner + first + i,
                  v[i] * inverse * args.norm[first + i]);
  }
}

}  // namespace

void mamba_reference(const MambaArgs& args, int phase, int worker, int workers) {
  const Step& step = *args.step;
  const int32_t units = phase == 0 ? MambaShape(args).channels : phase == 1 ? args.heads : args.groups;
  const int64_t rows = phase == 2 ? step.tokens : step.sequence_count;
  const Range range = partition(rows * units, worker, workers);
  for (int64_t i = range.first; i < range.last; ++i) {
    const int32_t row = int32_t(i / units);
    const int32_t unit = int32_t(i % units);
    const Sequence& sequence = step.sequences[phase == 2 ? step.sequence_of[row] : row];
    if (!is_live(sequence, args.slots)) continue;
    if (phase == 0) convolve(args, sequence, unit);
    if (phase == 1) scan(args, sequence, unit);
    if (phase == 2) gate_and_normalise(args, row, unit);
  }
}

}  // namespace nibblet
