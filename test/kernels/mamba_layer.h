#pragma once

#include <algorithm>
#include <functional>
#include <string>

#include "kernels/mamba/mamba.h"
#include "test/kernels/batch.h"
#include "test/kernels/bounded.h"

/// A Mamba layer, the oracle of what it computes, and the checks that every implementation passes.
namespace nibblet::test {

struct MambaLayerShape {
  int32_t heads, head_dim, groups, state, kernel;
  DType type;
  bool bias;
  int32_t inner() const { return heads * head_dim; }
  int32_t channels() const { return inner() + 2 * groups * state; }
  int32_t row() const { return inner() + channels() + heads; }
};

/// Runs all of mamba() on a machine. @param slots  of the states, and entries of args.slots
using MambaRun = std::function<void(const MambaArgs& args, int32_t slots)>;

/// The weights of a layer and the states of its slots, which start as garbage.
struct MambaLayer {
  MambaLayerShape shape;
  int32_t slots;
  std::vector<float> conv_weight, conv_bias, dt_bias, a_log, d, norm, ssm;
  Elements conv;

  MambaLayer(const MambaLayerShape& s, int32_t slot_count, uint64_t seed)
      : shape(s), slots(slot_count), conv(s.type, size_t(slots) * s.channels() * (s.kernel - 1)) {
    Random random(seed);
    conv_weight = random.normals(size_t(s.channels()) * s.kernel, 0.4);
    conv_bias = random.normals(s.channels(), 0.2);
    dt_bias = random.normals(s.heads, 1, -2);
    a_log = random.normals(s.heads, 0.7, 0.5);
    d = random.normals(s.heads);
    norm = random.normals(s.inner(), 0.3, 1);
    ssm.assign(size_t(slots) * s.inner() * s.state, std::nanf(""));
  }

  /// Runs one step. @return y
  Elements run(const MambaRun& run, const Batch& batch, const Elements& projected,
               const Slot* states = nullptr) {
    const Step step = batch.step();
    Elements y(shape.type, size_t(step.tokens) * shape.inner());
    std::vector<float> convolved(size_t(step.tokens) * shape.channels(), std::nanf(""));
    std::vector<float> scanned(size_t(step.tokens) * shape.inner(), std::nanf(""));
    const MambaArgs args = {
        &step,          states,           shape.heads,        shape.head_dim,
        shape.groups,   shape.state,      shape.kernel,       1e-5f,
        shape.type,     projected.data(), conv_weight.data(), shape.bias ? conv_bias.data() : nullptr,
        dt_bias.data(), a_log.data(),     d.data(),           norm.data(),
        conv.data(),    ssm.data(),       y.data(),           convolved.data(),
        scanned.data()};
    run(args, slots);
    return y;
  }

  std::vector<float> ssm_of(int32_t slot) const {
    const size_t count = size_t(shape.inner()) * shape.state;
    return {ssm.begin() + slot * count, ssm.begin() + (slot + 1) * count};
  }
  Elements conv_of(int32_t slot) const {
    const size_t count = size_t(shape.channels()) * (shape.kernel - 1);
    return conv.part(slot * count, count);
  }
  bool same_states(const MambaLayer& other) const {
    return conv == other.conv && std::memcmp(ssm.data(), other.ssm.data(), ssm.size() * sizeof(float)) == 0;
  }
};

inline Elements random_mamba_rows(const MambaLayerShape& shape, int32_t tokens, uint64_t seed) {
  Random random(seed);
  std::vector<float> values = random.normals(size_t(tokens) * shape.row());
  // Some steps on either side of softplus' threshold of 20.
  for (int32_t t = 2; t < tokens; t += 3)
    values[size_t(t) * shape.row() + shape.row() - 1] = float(20 + t % 7);
  return Elements(shape.type, values);
}

struct MambaExpected {
  std::vector<Bounded> y;
  std::vector<Bounded> ssm;
};

/// A whole sequence from position 0, written from the formulas of the header alone.
inline MambaExpected mamba_oracle(const MambaLayer& layer, const Elements& projected, int32_t tokens) {
  const MambaLayerShape& s = layer.shape;
  MambaExpected expected = {std::vector<Bounded>(size_t(tokens) * s.inner()),
                            std::vector<Bounded>(size_t(s.inner()) * s.state)};
  for (int32_t t = 0; t < tokens; ++t) {
    std::vector<Bounded> u(s.channels());
    for (int32_t c = 0; c < s.channels(); ++c) {
      BoundedSum sum;
      if (s.bias) sum.add(layer.conv_bias[c]);
      for (int32_t back = 0; back < s.kernel && back <= t; ++back) {
        sum.add(Bounded(projected[size_t(t - back) * s.row() + s.inner() + c]) *
                Bounded(layer.conv_weight[size_t(c) * s.kernel + s.kernel - 1 - back]));
      }
      u[c] = silu(sum.total(s.kernel + 1));
    }
    std::vector<Bounded> v(s.inner());
    for (int32_t h = 0; h < s.heads; ++h) {
      const int32_t group = h * s.groups / s.heads;
      const Bounded raw =
          Bounded(projected[size_t(t) * s.row() + s.row() - s.heads + h]) + Bounded(layer.dt_bias[h]);
      const Bounded dt = raw.value > 20 ? raw : log1p(exp(raw));
      const Bounded a = exp(Bounded(layer.a_log[h]));
      const Bounded rate = a * dt;
      const Bounded decay = exp(Bounded(-rate.value, rate.error));
      for (int32_t i = h * s.head_dim; i < (h + 1) * s.head_dim; ++i) {
        BoundedSum sum;
        for (int32_t n = 0; n < s.state; ++n) {
          Bounded& state = expected.ssm[size_t(i) * s.state + n];
          state = decay * state + dt * u[i] * u[s.inner() + group * s.state + n];
          sum.add(state * u[s.inner() + (s.groups + group) * s.state + n]);
        }
        const Bounded y = sum.total() + Bounded(layer.d[h]) * u[i];
        v[i] = y * silu(Bounded(projected[size_t(t) * s.row() + i]));
      }
    }
    const int32_t width = s.inner() / s.groups;
    for (int32_t g = 0; g < s.groups; ++g) {
      BoundedSum squares;
      for (int32_t i = g * width; i < (g + 1) * width; ++i) squares.add(v[i] * v[i]);
      const Bounded root = sqrt(squares.total() / Bounded(width) + Bounded(1e-5));
      for (int32_t i = g * width; i < (g + 1) * width; ++i) {
        expected.y[size_t(t) * s.inner() + i] = stored(v[i] / root * Bounded(layer.norm[i]), s.type);
      }
    }
  }
  return expected;
}

inline void check_mamba_oracle(const MambaRun& run, const std::vector<MambaLayerShape>& shapes) {
  for (const MambaLayerShape& shape : shapes) {
    const int32_t tokens = shape.heads == 64 ? 4 : 9;
    MambaLayer layer(shape, 2, 7);
    const Elements projected = random_mamba_rows(shape, tokens, 11);
    const MambaExpected expected = mamba_oracle(layer, projected, tokens);
    Batch batch;
    batch.add(1, 0, tokens);
    const Elements y = layer.run(run, batch, projected);
    for (size_t i = 0; i < y.size(); ++i) CHECK_NEAR(y[i], expected.y[i].value, expected.y[i].error);
    const std::vector<float> ssm = layer.ssm_of(1);
    for (size_t i = 0; i < ssm.size(); ++i) CHECK_NEAR(ssm[i], expected.ssm[i].value, expected.ssm[i].error);
    const Elements conv = layer.conv_of(1);
    for (int32_t c = 0; c < shape.channels(); ++c) {
      for (int32_t i = 0; i < shape.kernel - 1; ++i) {
        const int32_t t = tokens - (shape.kernel - 1) + i;
        const float input = t < 0 ? 0 : projected[size_t(t) * shape.row() + shape.inner() + c];
        CHECK_EQ(conv[size_t(c) * (shape.kernel - 1) + i], input);
      }
    }
    CHECK(std::isnan(layer.ssm_of(0)[0]));
  }
}

/// Runs a sequence in the given pieces. @return y of all tokens
inline Elements run_mamba_in_pieces(const MambaRun& run, MambaLayer& layer, const Elements& projected,
                                    const std::vector<int32_t>& pieces) {
  const MambaLayerShape& s = layer.shape;
  Elements y(s.type, projected.size() / s.row() * s.inner());
  int32_t position = 0;
  for (const int32_t count : pieces) {
    Batch batch;
    batch.add(0, position, count);
    const Elements part =
        layer.run(run, batch, projected.part(size_t(position) * s.row(), size_t(count) * s.row()));
    part.copy(y, size_t(position) * s.inner(), 0, part.size());
    position += count;
  }
  return y;
}

inline void check_mamba_pieces(const MambaRun& run, const std::vector<MambaLayerShape>& shapes) {
  for (const MambaLayerShape& shape : shapes) {
    const int32_t tokens = shape.heads == 64 ? 6 : 23;
    const Elements projected = random_mamba_rows(shape, tokens, 3);
    MambaLayer whole(shape, 1, 5);
    const Elements y = run_mamba_in_pieces(run, whole, projected, {tokens});
    std::vector<std::vector<int32_t>> ways = {std::vector<int32_t>(tokens, 1), {1, 2, tokens - 3}};
    if (tokens > 14) ways.push_back({7, 7, tokens - 14});
    for (const std::vector<int32_t>& pieces : ways) {
      MambaLayer layer(shape, 1, 5);
      CHECK(run_mamba_in_pieces(run, layer, projected, pieces) == y);
      CHECK(layer.same_states(whole));
    }
  }
}

/// A ragged batch: live and idle decode rows, then chunks, in slots out of order.
inline void check_mamba_batch(const MambaRun& run, const std::vector<MambaRun>& others,
                              const std::vector<MambaLayerShape>& shapes) {
  for (const MambaLayerShape& shape : shapes) {
    const int32_t slots = 5;
    MambaLayer start(shape, slots, 9);
    {
      // Slots 0, 2 and 3 hold sequences of 4 tokens already.
      Batch batch;
      for (const int32_t slot : {0, 2, 3}) batch.add(slot, 0, 4);
      start.run(run, batch, random_mamba_rows(shape, 12, 21));
    }
    std::vector<Slot> states(slots);
    states[2].active = 1;
    Batch batch;
    batch.add(2, 4, 1, kDecode);
    batch.add(3, 4, 1, kDecode);  // not active
    batch.add(4, 0, 5);
    batch.add(0, 4, 3);
    batch.add(1, 0, 1);
    const int32_t tokens = int32_t(batch.ids.size());
    const Elements projected = random_mamba_rows(shape, tokens, 22);
    MambaLayer together = start;
    const Elements y = together.run(run, batch, projected, states.data());

    CHECK(std::memcmp(together.ssm_of(3).data(), start.ssm_of(3).data(), start.ssm_of(3).size() * 4) == 0);
    CHECK(together.conv_of(3) == start.conv_of(3));
    MambaLayer apart = start;
    for (const Sequence& sequence : batch.sequences) {
      if (sequence.slot == 3) continue;
      Batch alone;
      alone.add(sequence.slot, sequence.position, sequence.count, sequence.flags);
      const Elements part = apart.run(
          run, alone,
          projected.part(size_t(sequence.first) * shape.row(), size_t(sequence.count) * shape.row()),
          states.data());
      CHECK(part == y.part(size_t(sequence.first) * shape.inner(), part.size()));
    }
    CHECK(apart.same_states(together));

    for (const MambaRun& other : others) {
      MambaLayer split = start;
      const Elements same = split.run(other, batch, projected, states.data());
      CHECK(split.same_states(together));
      for (const Sequence& sequence : batch.sequences) {
        if (sequence.slot == 3) continue;
        const size_t first = size_t(sequence.first) * shape.inner();
        const size_t count = size_t(sequence.count) * shape.inner();
        CHECK(same.part(first, count) == y.part(first, count));
      }
    }
  }
}

}  // namespace nibblet::test
