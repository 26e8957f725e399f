#pragma once

#include <algorithm>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

#include "kernels/linear/matmul.h"
#include "kernels/moe/moe.h"
#include "test/kernels/batch.h"
#include "test/kernels/bfp_bound.h"
#include "test/kernels/bounded.h"
#include "test/kernels/weights.h"

namespace nibblet::test {

struct MoeShape {
  int32_t hidden, experts, top_k, width, shared_width;
  int32_t groups = 1, topk_groups = 1;
  Format format = Format::bf16;
  Layout layout = Layout::rows;
  bool exact = false;
  bool normalize = true;
  bool biases = false;
  bool columns = false;  ///< `down` in Layout::columns

  /// For the matrices of `down`.
  MoeShape for_down() const {
    MoeShape result = *this;
    if (columns) result.layout = Layout::columns;
    return result;
  }
};

/// The matrices of several experts, as values and packed one after another.
struct ExpertWeights {
  std::vector<RandomWeight> sources;
  std::vector<float> row_scales;
  GuardedBytes bytes;
  WeightView view;

  ExpertWeights(const MoeShape& s, int32_t matrices, int32_t out, int32_t in, uint32_t seed)
      : bytes(matrices * packed_matrix_bytes(s.format, s.layout, out, in)) {
    const size_t size = packed_matrix_bytes(s.format, s.layout, out, in);
    for (int32_t m = 0; m < matrices; ++m) {
      sources.emplace_back(s.format, out, in, seed + m);
      RandomWeight& source = sources.back();
      double squares = 0;
      for (int32_t k = 0; k < in; ++k) squares += source.value(0, k) * source.value(0, k);
      // Products of order one.
      for (float& scale : source.row_scales) scale *= 100 / float(std::sqrt(squares));
      std::atomic<int64_t> bad{0};
      const PackArgs args = {s.format,
                             s.layout,
                             out,
                             in,
                             0,
                             out,
                             source.elements.data(),
                             source.block_scales.empty() ? nullptr : source.block_scales.data(),
                             bytes.data() + m * size,
                             &bad};
      pack(args, 0, 0, 1);
      row_scales.insert(row_scales.end(), source.row_scales.begin(), source.row_scales.end());
    }
    view = {s.format, s.layout,          matrices, out, in, matrices > 0 ? bytes.data() : nullptr,
            size,     row_scales.data(), 0};
  }

  /// Row n of matrix m times x, in any order that adds blocks of 16 inputs.
  Bounded product(int32_t m, int32_t n, const std::vector<Bounded>& x) const {
    const RandomWeight& source = sources[m];
    BoundedSum sum;
    for (int32_t k = 0; k < source.in; ++k) sum.add(x[k] * Bounded(source.value(n, k)));
    return Bounded(source.row_scales[n]) * sum.total(20 + (source.in + 15) / 16);
  }
};

struct MoeLayer {
  MoeShape shape;
  std::vector<float> norm, router, bias, up_bias, down_bias, shared_up_bias, shared_down_bias;
  ExpertWeights up, down, shared_up, shared_down;
  float scale = 2.5f;

  MoeLayer(const MoeShape& s, uint32_t seed)
      : shape(s),
        up(s, s.experts, s.width, s.hidden, seed),
        down(s.for_down(), s.experts, s.hidden, s.width, seed + 1000),
        shared_up(s, s.shared_width > 0, std::max(s.shared_width, 1), s.hidden, seed + 2000),
        shared_down(s.for_down(), s.shared_width > 0, s.hidden, s.shared_width > 0 ? s.shared_width : 16,
                    seed + 2001) {
    Random random(seed);
    norm = random.normals(s.hidden, 0.3, 1);
    router = random.normals(size_t(s.experts) * s.hidden, 1 / std::sqrt(double(s.hidden)));
    // Mostly negative, so that a masked expert must lose to every other one, not merely count as 0.
    bias = random.normals(s.experts, 0.2, -1);
    up_bias = random.normals(size_t(s.experts) * s.width, 0.1);
    down_bias = random.normals(size_t(s.experts) * s.hidden, 0.1);
    shared_up_bias = random.normals(s.shared_width, 0.1);
    shared_down_bias = random.normals(s.hidden, 0.1);
  }

  /// @param counters what moe_statistics adds to
  /// @return x after the layer
  std::vector<float> run(const std::vector<float>& rows, int workers = 1, uint64_t* counters = nullptr) {
    std::vector<float> x = rows;
    const int32_t tokens = int32_t(x.size()) / shape.hidden;
    MoeArgs args = {tokens,
                    shape.hidden,
                    x.data(),
                    norm.data(),
                    1e-5f,
                    shape.exact,
                    router.data(),
                    bias.data(),
                    shape.experts,
                    shape.top_k,
                    shape.groups,
                    shape.topk_groups,
                    shape.normalize,
                    scale,
                    up.view,
                    down.view,
                    shared_up.view,
                    shared_down.view,
                    shape.biases ? up_bias.data() : nullptr,
                    shape.biases ? down_bias.data() : nullptr,
                    shape.biases ? shared_up_bias.data() : nullptr,
                    shape.biases ? shared_down_bias.data() : nullptr,
                    nullptr};
    GuardedBytes scratch(moe_scratch_bytes(args, tokens), 0xff);
    args.scratch = scratch.data();
    run_phases(moe, kMoePhases, args, workers);
    if (counters != nullptr) moe_statistics(args, counters);
    CHECK(scratch.guards_intact());
    return x;
  }

  /// Whether the experts read x̂ in block floating point.
  bool block_floating_point() const { return !shape.exact && plan_bfp(up.view) != nullptr; }

  /// One token by the formulas of the header. `margin` becomes the least distance of a choice from another one.
  std::vector<Bounded> oracle(const float* x, double& margin, bool bfp = false) const {
    const MoeShape& s = shape;
    BoundedSum squares;
    for (int32_t k = 0; k < s.hidden; ++k) squares.add(Bounded(x[k]) * Bounded(x[k]));
    const Bounded root = sqrt(squares.total() / Bounded(s.hidden) + Bounded(1e-5));
    std::vector<Bounded> input(s.hidden);
    for (int32_t k = 0; k < s.hidden; ++k) input[k] = Bounded(x[k]) / root * Bounded(norm[k]);
    std::vector<Bounded> scores(s.experts);
    for (int32_t e = 0; e < s.experts; ++e) {
      BoundedSum logit;
      for (int32_t k = 0; k < s.hidden; ++k) logit.add(input[k] * Bounded(router[size_t(e) * s.hidden + k]));
      scores[e] = sigmoid(logit.total());
    }
    const std::vector<int32_t> chosen = choose(scores, margin);
    if (!s.exact) std::transform(input.begin(), input.end(), input.begin(), to_bf16);
    if (bfp) add_conversion_errors(input);

    Bounded weight_sum;
    for (const int32_t e : chosen) weight_sum = weight_sum + scores[e];
    std::vector<Bounded> y(s.hidden);
    for (const int32_t e : chosen) {
      const Bounded weight = (s.normalize ? scores[e] / weight_sum : scores[e]) * Bounded(scale);
      const std::vector<Bounded> part = expert(up, down, e, input, up_bias.data() + size_t(e) * s.width,
                                               down_bias.data() + size_t(e) * s.hidden);
      for (int32_t n = 0; n < s.hidden; ++n) y[n] = y[n] + weight * part[n];
    }
    if (s.shared_width > 0) {
      const std::vector<Bounded> part =
          expert(shared_up, shared_down, 0, input, shared_up_bias.data(), shared_down_bias.data());
      for (int32_t n = 0; n < s.hidden; ++n) y[n] = y[n] + part[n];
    }
    for (int32_t n = 0; n < s.hidden; ++n) y[n] = y[n] + Bounded(x[n]);
    return y;
  }

 private:
  static void add_conversion_errors(std::vector<Bounded>& input) {
    for (size_t block = 0; block < input.size(); block += kBlockInputs) {
      const size_t end = std::min(block + kBlockInputs, input.size());
      double largest = 0;
      for (size_t k = block; k < end; ++k) {
        largest = std::max(largest, std::fabs(input[k].value) + input[k].error);
      }
      for (size_t k = block; k < end; ++k) input[k].error += bfp_scale(largest) / 2;
    }
  }

  /// The `keep` largest, ties to the lower index, ascending.
  static std::vector<int32_t> largest(const std::vector<double>& values, int32_t keep, double& margin) {
    std::vector<int32_t> order(values.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return values[a] > values[b]; });
    if (size_t(keep) < order.size()) margin = std::min(margin, values[order[keep - 1]] - values[order[keep]]);
    order.resize(keep);
    std::sort(order.begin(), order.end());
    return order;
  }

  std::vector<int32_t> choose(const std::vector<Bounded>& scores, double& margin) const {
    const int32_t size = shape.experts / shape.groups;
    std::vector<double> choice(shape.experts);
    std::vector<double> group_scores(shape.groups);
    for (int32_t e = 0; e < shape.experts; ++e) choice[e] = scores[e].value + bias[e];
    for (int32_t g = 0; g < shape.groups; ++g) {
      std::vector<double> members(choice.begin() + g * size, choice.begin() + (g + 1) * size);
      std::sort(members.rbegin(), members.rend());
      group_scores[g] = members[0] + (size > 1 ? members[1] : 0);
    }
    const std::vector<int32_t> kept = largest(group_scores, shape.topk_groups, margin);
    for (int32_t e = 0; e < shape.experts; ++e) {
      if (!std::count(kept.begin(), kept.end(), e / size))
        choice[e] = -std::numeric_limits<double>::infinity();
    }
    return largest(choice, shape.top_k, margin);
  }

  std::vector<Bounded> expert(const ExpertWeights& up_weights, const ExpertWeights& down_weights, int32_t m,
                              const std::vector<Bounded>& input, const float* first_bias,
                              const float* second_bias) const {
    const int32_t width = up_weights.view.out;
    std::vector<Bounded> hidden(width), output(shape.hidden);
    for (int32_t n = 0; n < width; ++n) {
      Bounded value = up_weights.product(m, n, input);
      if (shape.biases) value = value + Bounded(first_bias[n]);
      // Where the sign is in doubt the square is at most the square of the error.
      const double doubt = value.error * value.error;
      value = value.value > 0 ? value * value : Bounded(0, doubt);
      hidden[n] = shape.exact ? value : to_bf16(value);
    }
    for (int32_t n = 0; n < shape.hidden; ++n) {
      output[n] = down_weights.product(m, n, hidden);
      if (shape.biases) output[n] = output[n] + Bounded(second_bias[n]);
    }
    return output;
  }
};

}  // namespace nibblet::test
