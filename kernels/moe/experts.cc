#include <algorithm>

#include "kernels/moe/scratch.h"
#include "kernels/numerics/partition.h"
#include "kernels/numerics/rows.h"

namespace nibblet {
namespace {

/// Output columns of one product that waits on the stack.
constexpr int32_t kChunk = 64;
/// What unpacking a panel costs, in tokens multiplied with it. Only the balance of the workers depends on it.
constexpr int64_t kPanelCost = 4;

constexpr int64_t ceil_divide(int64_t a, int64_t b) { return (a + b - 1) / b; }

/// A layer's experts, and the shared one after them: which rows go in, and where the hidden activations live.
struct Expert {
  const MoeArgs& args;
  const MoeScratch& scratch;
  int32_t index;  ///< `experts`: the shared one

  bool shared() const { return index == args.experts; }
  const WeightView& up() const { return shared() ? args.shared_up : args.up; }
  const WeightView& down() const { return shared() ? args.shared_down : args.down; }
  int32_t matrix() const { return shared() ? 0 : index; }
  int64_t count() const {
    if (shared()) return args.shared_up.data == nullptr ? 0 : args.tokens;
    return scratch.first[index + 1] - scratch.first[index];
  }
  /// Entry i of this expert: token · top_k + k, or the token for the shared expert.
  int64_t entry(int64_t i) const { return shared() ? i : scratch.entries[scratch.first[index] + i]; }
  int64_t token(int64_t entry) const { return shared() ? entry : entry / args.top_k; }
  float* hidden(int64_t entry) const {
    return shared() ? scratch.shared_row(entry) : scratch.hidden_row(entry);
  }
  const float* up_bias() const {
    if (shared()) return args.shared_up_bias;
    return args.up_bias == nullptr ? nullptr : args.up_bias + int64_t(index) * args.up.out;
  }
  const float* down_bias() const {
    if (shared()) return args.shared_down_bias;
    return args.down_bias == nullptr ? nullptr : args.down_bias + int64_t(index) * args.hidden;
  }
};

/// Bias, relu² and rounding of hidden activations [first, last), and the zero padding after the last.
void activate(const Expert& expert, float* hidden, int32_t first, int32_t last) {
  const float* bias = expert.up_bias();
  if (bias != nullptr) {
    for (int32_t n = first; n < last; ++n) hidden[n] += bias[n];
  }
  relu2(hidden + first, last - first);
  if (!expert.args.exact) round_to_bf16(hidden + first, last - first);
  const int32_t width = expert.up().out;
  if (last == width) std::fill(hidden + width, hidden + round_up(width, kBlockInputs), 0.0f);
}

/// Hidden activations [first, last) of every token of an expert.
void up(const Expert& expert, int32_t first, int32_t last) {
  const WeightView& weight = expert.up();
  const Matmul matmul = plan_matmul(weight);
  const float* x[kMoeTile];
  float* y[kMoeTile];
  for (int32_t n = first; n < last; n += kChunk) {
    const int32_t end = std::min(n + kChunk, last);
    for (int64_t begin = 0; begin < expert.count(); begin += kMoeTile) {
      const int32_t tile = int32_t(std::min<int64_t>(kMoeTile, expert.count() - begin));
      for (int32_t m = 0; m < tile; ++m) {
        const int64_t entry = expert.entry(begin + m);
        x[m] = expert.scratch.normed_row(expert.token(entry));
        y[m] = expert.hidden(entry) + n;
      }
      matmul(weight, expert.matrix(), x, tile, n, end, y);
      for (int32_t m = 0; m < tile; ++m) activate(expert, y[m] - n, n, end);
    }
  }
}

/// Adds outputs [first, last) of every token of an expert to the token's sum.
void down(const Expert& expert, int32_t first, int32_t last) {
  const WeightView& weight = expert.down();
  const Matmul matmul = plan_matmul(weight);
  const float* bias = expert.down_bias();
  // Panels stay in the cache while the tiles of tokens pass; columns are to be read as far as they go.
  const int32_t chunk = weight.layout == Layout::columns ? last - first : kChunk;
  const float* x[kMoeTile];
  float* y[kMoeTile];
  for (int32_t n = first; n < last; n += chunk) {
    const int32_t end = std::min(n + chunk, last);
    for (int64_t begin = 0; begin < expert.count(); begin += kMoeTile) {
      const int32_t tile = int32_t(std::min<int64_t>(kMoeTile, expert.count() - begin));
      for (int32_t m = 0; m < tile; ++m) {
        x[m] = expert.hidden(expert.entry(begin + m));
        y[m] = expert.scratch.product_row(m) + n;
      }
      matmul(weight, expert.matrix(), x, tile, n, end, y);
      for (int32_t m = 0; m < tile; ++m) {
        const int64_t entry = expert.entry(begin + m);
        const float share = expert.shared() ? 1.0f : expert.scratch.weights[entry];
        float* sum = expert.scratch.normed_row(expert.token(entry)) + n;
        for (int32_t i = 0; bias != nullptr && i < end - n; ++i) y[m][i] += bias[n + i];
        for (int32_t i = 0; i < end - n; ++i) {
          sum[i] += share * y[m][i];
        }
      }
    }
  }
}

}  // namespace

void moe_up(const MoeArgs& args, const MoeScratch& scratch, int worker, int workers) {
  const auto panels = [](const Expert& expert) { return ceil_divide(expert.up().out, kPanelRows); };
  const auto panel_cost = [](const Expert& expert) {
    return expert.count() == 0 ? 0 : expert.count() + kPanelCost;
  };
  int64_t total = 0;
  for (int32_t e = 0; e <= args.experts; ++e) {
    const Expert expert = {args, scratch, e};
    if (expert.count() > 0) total += panels(expert) * panel_cost(expert);
  }
  // The experts' panels lie one after another on a line of costs; each worker takes the panels that start in its part.
  const Range part = partition(total, worker, workers);
  int64_t start = 0;
  for (int32_t e = 0; e <= args.experts; ++e) {
    const Expert expert = {args, scratch, e};
    if (expert.count() == 0) continue;
    const int64_t cost = panel_cost(expert);
    const auto panel_at = [&](int64_t place) {
      return std::clamp<int64_t>(ceil_divide(std::max<int64_t>(place - start, 0), cost), 0, panels(expert));
    };
    const int32_t first = int32_t(panel_at(part.first)) * kPanelRows;
    const int32_t last = std::min(int32_t(panel_at(part.last)) * kPanelRows, expert.up().out);
    if (first < last) up(expert, first, last);
    start += panels(expert) * cost;
  }
}

void moe_down(const MoeArgs& args, const MoeScratch& scratch, int worker, int workers) {
  const Range panels = partition(ceil_divide(args.hidden, kPanelRows), worker, workers);
  const int32_t first = int32_t(panels.first) * kPanelRows;
  const int32_t last = std::min(int32_t(panels.last) * kPanelRows, args.hidden);
  if (first >= last) return;
  for (int64_t t = 0; t < args.tokens; ++t) {
    std::fill(scratch.normed_row(t) + first, scratch.normed_row(t) + last, 0.0f);
  }
  // Experts ascend and the shared one comes last, so the order of a token's sum does not depend on other tokens.
  for (int32_t e = 0; e <= args.experts; ++e) {
    const Expert expert = {args, scratch, e};
    if (expert.count() > 0) down(expert, first, last);
  }
  for (int64_t t = 0; t < args.tokens; ++t) {
    const float* sum = scratch.normed_row(t);
    float* x = args.x + t * args.hidden;
    for (int32_t n = first; n < last; ++n) x[n] += sum[n];
  }
}

}  // namespace nibblet
