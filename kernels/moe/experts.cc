#include <algorithm>

#include "kernels/moe/scratch.h"
#include "kernels/numerics/partition.h"
#include "kernels/numerics/rows.h"
#include "kernels/simd/dispatch.h"

namespace nibblet {
namespace {

/// Output columns of one product that waits on the stack.
constexpr int32_t kChunk = 64;
/// Tokens that share one pass over an expert's columns.
constexpr int32_t kDownTile = 64;
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
  float* product(int64_t entry) const {
    return scratch.product_row(shared() ? int64_t(args.tokens) * args.top_k + entry : entry);
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
NIBBLET_VECTORIZED inline void activate(const Expert& expert, float* hidden, int32_t first, int32_t last) {
  const float* bias = expert.up_bias();
  if (bias != nullptr) {
    for (int32_t n = first; n < last; ++n) hidden[n] += bias[n];
  }
  relu2(hidden + first, last - first);
  if (!expert.args.exact) round_to_bf16(hidden + first, last - first);
  const int32_t width = expert.up().out;
  if (last == width) std::fill(hidden + width, hidden + round_up(width, kBlockInputs), 0.0f);
}

/// Hidden activations [first, last) of every token of an expert. @param row  row(token) in the form that `matmul` reads
template <typename Product, typename Row>
void up_by(const Expert& expert, Product matmul, Row row, int32_t first, int32_t last) {
  decltype(row(0)) x[kMoeTile];
  float* y[kMoeTile];
  for (int32_t n = first; n < last; n += kChunk) {
    const int32_t end = std::min(n + kChunk, last);
    for (int64_t begin = 0; begin < expert.count(); begin += kMoeTile) {
      const int32_t tile = int32_t(std::min<int64_t>(kMoeTile, expert.count() - begin));
      for (int32_t m = 0; m < tile; ++m) {
        const int64_t entry = expert.entry(begin + m);
        x[m] = row(expert.token(entry));
        y[m] = expert.hidden(entry) + n;
      }
      matmul(expert.up(), expert.matrix(), x, tile, n, end, y);
      run_vectorized([&]() NIBBLET_VECTORIZED {
        for (int32_t m = 0; m < tile; ++m) activate(expert, y[m] - n, n, end);
      });
    }
  }
}

void up(const Expert& expert, int32_t first, int32_t last) {
  const MoeScratch& scratch = expert.scratch;
  if (const BfpKernels* bfp = up_bfp(expert.args, expert.up())) {
    const auto row = [&](int64_t token) -> const BfpBlock* { return scratch.blocks_row(token); };
    up_by(expert, bfp->matmul, row, first, last);
  } else {
    const auto row = [&](int64_t token) -> const float* { return scratch.normed_row(token); };
    up_by(expert, plan_matmul(expert.up()), row, first, last);
  }
}

/// Outputs [first, last) of every token of an expert, into the entries' products.
void down(const Expert& expert, int32_t first, int32_t last) {
  const WeightView& weight = expert.down();
  const Matmul matmul = plan_matmul(weight);
  // Panels stay in the cache while the tiles of tokens pass; columns are to be read as far as they go.
  const int32_t chunk = weight.layout == Layout::columns ? last - first : kChunk;
  const float* x[kDownTile];
  float* y[kDownTile];
  for (int32_t n = first; n < last; n += chunk) {
    const int32_t end = std::min(n + chunk, last);
    for (int64_t begin = 0; begin < expert.count(); begin += kDownTile) {
      const int32_t tile = int32_t(std::min<int64_t>(kDownTile, expert.count() - begin));
      for (int32_t m = 0; m < tile; ++m) {
        const int64_t entry = expert.entry(begin + m);
        x[m] = expert.hidden(entry);
        y[m] = expert.product(entry) + n;
      }
      matmul(weight, expert.matrix(), x, tile, n, end, y);
    }
  }
}

/// Calls work(expert, first, last) for a worker's part of all experts' rows. Their pieces of `granule` rows lie one after another
/// on a line of costs, piece_cost each; a worker takes the pieces that start in its part, of whole experts but for two.
template <typename PieceCost, typename Work>
void share_out(const MoeArgs& args, const MoeScratch& scratch, int worker, int workers,
               int32_t rows(const Expert&), int32_t granule, PieceCost piece_cost, Work work) {
  const auto pieces = [&](const Expert& expert) { return ceil_divide(rows(expert), granule); };
  int64_t total = 0;
  for (int32_t e = 0; e <= args.experts; ++e) {
    const Expert expert = {args, scratch, e};
    if (expert.count() > 0) total += pieces(expert) * piece_cost(expert);
  }
  const Range part = partition(total, worker, workers);
  int64_t start = 0;
  for (int32_t e = 0; e <= args.experts; ++e) {
    const Expert expert = {args, scratch, e};
    if (expert.count() == 0) continue;
    const int64_t cost = piece_cost(expert);
    const auto piece_at = [&](int64_t place) {
      return std::clamp<int64_t>(ceil_divide(std::max<int64_t>(place - start, 0), cost), 0, pieces(expert));
    };
    const int32_t first = int32_t(piece_at(part.first)) * granule;
    const int32_t last = std::min(int32_t(piece_at(part.last)) * granule, rows(expert));
    if (first < last) work(expert, first, last);
    start += pieces(expert) * cost;
  }
}

/// A part of moe_combine's values.
NIBBLET_VECTORIZED inline void combine(const MoeArgs& args, const MoeScratch& scratch, Range values) {
  const Expert shared = {args, scratch, args.experts};
  float sums[kChunk];
  for (int64_t at = values.first, next = at; at < values.last; at = next) {
    const int64_t token = at / args.hidden;
    const int32_t first = int32_t(at % args.hidden);
    next = std::min({at + kChunk, (token + 1) * args.hidden, values.last});
    const int32_t count = int32_t(next - at);
    std::fill(sums, sums + count, 0.0f);
    const auto add = [&](const Expert& expert, int64_t entry, float share) NIBBLET_VECTORIZED {
      const float* product = expert.product(entry) + first;
      const float* bias = expert.down_bias();
      if (bias == nullptr) {
        for (int32_t i = 0; i < count; ++i) sums[i] += share * product[i];
      } else {
        for (int32_t i = 0; i < count; ++i) sums[i] += share * (product[i] + bias[first + i]);
      }
    };
    // Experts ascend and the shared one comes last, so the order of a token's sum does not depend on other tokens.
    for (int64_t entry = token * args.top_k; entry < (token + 1) * args.top_k; ++entry) {
      add({args, scratch, scratch.chosen[entry]}, entry, scratch.weights[entry]);
    }
    if (shared.count() > 0) add(shared, token, 1.0f);
    float* x = args.x + at;
    for (int32_t i = 0; i < count; ++i) x[i] += sums[i];
  }
}

}  // namespace

void moe_up(const MoeArgs& args, const MoeScratch& scratch, int worker, int workers) {
  share_out(
      args, scratch, worker, workers, [](const Expert& expert) { return expert.up().out; }, kPanelRows,
      [](const Expert& expert) { return expert.count() + kPanelCost; }, up);
}

void moe_down(const MoeArgs& args, const MoeScratch& scratch, int worker, int workers) {
  const bool columns = args.down.layout == Layout::columns || args.shared_down.layout == Layout::columns;
  share_out(
      args, scratch, worker, workers, [](const Expert& expert) { return expert.down().out; },
      columns ? kColumnRows : kPanelRows,
      [](const Expert& expert) {
        return (expert.count() + kPanelCost) * ceil_divide(expert.down().in, kBlockInputs);
      },
      down);
}

void moe_combine(const MoeArgs& args, const MoeScratch& scratch, int worker, int workers) {
  const Range values = partition(int64_t(args.tokens) * args.hidden, worker, workers);
  run_vectorized([&]() NIBBLET_VECTORIZED { combine(args, scratch, values); });
}

}  // namespace nibblet
