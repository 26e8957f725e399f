#include <algorithm>
#include <limits>

#include "kernels/attention/query_rows.h"
#include "kernels/attention/split.h"
#include "kernels/numerics/partition.h"

namespace nibblet {
namespace {

/// Attends query rows one page after another, with a running maximum.
class Tile {
 public:
  Tile(const AttentionArgs& args, int32_t sequence, int32_t kv_head)
      : rows_(args, sequence, kv_head), head_dim_(args.head_dim) {
    for (int32_t r = 0; r < kQueryRows; ++r) {
      score_rows_[r] = scores_[r];
      sum_rows_[r] = sums_[r];
    }
  }

  /// Rows [first, first + count) of the sequence's tokens × heads of this kv head.
  void attend(int32_t first, int32_t count) {
    rows_.place(first, count);
    rows_.load_queries();
    for (int32_t r = 0; r < count; ++r) {
      std::fill(sums_[r], sums_[r] + rows_.padded(), 0.0f);
      largest_[r] = -std::numeric_limits<float>::infinity();
      total_[r] = 0;
    }
    bool finite = true;
    for (int32_t page = 0; page < rows_.length(); page += kPageTokens) {
      finite &= rows_.is_finite(kKey, page) && rows_.is_finite(kValue, page);
      rows_.score(page, score_rows_);
      for (int32_t r = 0; r < count; ++r) {
        rows_.scale(sums_[r], rows_.weigh(r, page, scores_[r], largest_[r], total_[r]), head_dim_);
      }
      rows_.add_values(page, score_rows_, 0, head_dim_, sum_rows_);
    }
    for (int32_t r = 0; r < count; ++r) {
      if (finite) {
        rows_.write(r, 0, head_dim_, sums_[r], total_[r]);
      } else {
        rows_.attend_alone(r);
      }
    }
  }

 private:
  QueryRows rows_;
  const int32_t head_dim_;
  float* score_rows_[kQueryRows];
  float* sum_rows_[kQueryRows];
  float largest_[kQueryRows];
  float total_[kQueryRows];
  alignas(64) float scores_[kQueryRows][kPageTokens];
  alignas(64) float sums_[kQueryRows][kMaxHeadDim];
};

/// Splits the query rows of the batch by the positions they see: a part may begin anywhere, since rows are independent.
void attend_all(const AttentionArgs& args, int worker, int workers) {
  const Step& step = *args.step;
  const int32_t group = args.heads / args.kv_heads;
  const auto row_cost = [&](const Sequence& s) { return int64_t(s.position) + s.count; };
  int64_t total = 0;
  for (int32_t s = 0; s < step.sequence_count; ++s) {
    const Sequence& sequence = step.sequences[s];
    if (is_live(sequence, args.slots)) total += row_cost(sequence) * sequence.count * args.heads;
  }
  const Range part = partition(total, worker, workers);
  int64_t start = 0;
  for (int32_t s = 0; s < step.sequence_count; ++s) {
    const Sequence& sequence = step.sequences[s];
    if (!is_live(sequence, args.slots)) continue;
    const int64_t cost = row_cost(sequence);
    const int64_t rows = int64_t(sequence.count) * group;
    for (int32_t kv_head = 0; kv_head < args.kv_heads; ++kv_head, start += rows * cost) {
      const Range mine = units_of(part, start, cost, rows);
      if (mine.first >= mine.last) continue;
      Tile tile(args, s, kv_head);
      for (int64_t row = mine.first; row < mine.last; row += kQueryRows) {
        tile.attend(int32_t(row), int32_t(std::min<int64_t>(kQueryRows, mine.last - row)));
      }
    }
  }
}

}  // namespace

void attention(const AttentionArgs& args, int phase, int worker, int workers) {
  if (phase == 0 || args.head_dim > kMaxHeadDim) {
    attention_reference(args, phase, worker, workers);
  } else if (attention_is_split(args)) {
    attention_split(args, phase, worker, workers);
  } else if (phase == 1) {
    attend_all(args, worker, workers);
  }
}

}  // namespace nibblet
