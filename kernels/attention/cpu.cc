#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/attention/cache.h"
#include "kernels/attention/lanes.h"
#include "kernels/linear/matmul.h"
#include "kernels/numerics/partition.h"

// Both products of attention are the inner product of linear: scores = queries · keys and sums = weights · values, with
// a slice of a page, packed into panels, as the weight. So the variant of the machine does the arithmetic here.
namespace nibblet {
namespace {

constexpr float kNothing = -std::numeric_limits<float>::infinity();
/// Query rows (a token and a head) that share the packing of a page.
constexpr int32_t kRows = 16;
/// Positions of a slice; the panels of one slice are at most 32 KiB.
constexpr int32_t kSlice = 32;
constexpr int32_t kMaxHeadDim = 256;

/// Up to kRows query rows of one sequence and kv head.
class Tile {
 public:
  Tile(const AttentionArgs& args, int32_t sequence, int32_t kv_head)
      : args_(args),
        sequence_(args.step->sequences[sequence]),
        index_(sequence),
        kv_head_(kv_head),
        padded_(round_up(args.head_dim, kBlockInputs)) {
    const float key_scale = args.scale * cache_scale(args, kKey);
    std::fill(key_scales_, key_scales_ + kSlice, key_scale);
    std::fill(value_scales_, value_scales_ + padded_, cache_scale(args, kValue));
    for (int32_t r = 0; r < kRows; ++r) {
      query_rows_[r] = queries_[r];
      sum_rows_[r] = products_[r];
    }
  }

  /// Attends rows [first, first + count) of the sequence's tokens × heads of this kv head.
  void attend(int32_t first, int32_t count) {
    const int32_t group = args_.heads / args_.kv_heads;
    for (int32_t r = 0; r < count; ++r) {
      token_[r] = sequence_.first + (first + r) / group;
      head_[r] = kv_head_ * group + (first + r) % group;
      length_[r] = sequence_.position + (first + r) / group + 1;
      start_row(r);
    }
    finite_ = true;
    // The last row sees the most.
    for (int32_t page = 0; page < length_[count - 1]; page += kPageTokens) attend_page(page, count);
    if (!finite_) {
      // Each row for itself: what a later token cached must not reach an earlier one.
      for (int32_t r = 0; r < count; ++r) attend_reference(args_, sequence_, token_[r], head_[r]);
      return;
    }
    for (int32_t r = 0; r < count; ++r) {
      const size_t out = (size_t(token_[r]) * args_.heads + head_[r]) * args_.head_dim;
      for (int32_t i = 0; i < args_.head_dim; ++i) {
        write_element(args_.y, args_.type, out + i, sums_[r][i] / total_[r]);
      }
    }
  }

 private:
  void start_row(int32_t r) {
    const size_t query = size_t(token_[r]) * qkv_row(args_) + size_t(head_[r]) * args_.head_dim;
    for (int32_t i = 0; i < args_.head_dim; ++i) {
      queries_[r][i] = read_element(args_.qkv, args_.type, query + i);
    }
    std::fill(queries_[r] + args_.head_dim, queries_[r] + padded_, 0.0f);
    std::fill(sums_[r], sums_[r] + padded_, 0.0f);
    largest_[r] = kNothing;
    total_[r] = 0;
  }

  void attend_page(int32_t page, int32_t count) {
    const int32_t used = std::min(length_[count - 1] - page, kPageTokens);
    for (int32_t slice = 0; slice < used; slice += kSlice) {
      const int32_t positions = std::min(kSlice, used - slice);
      pack(kKey, page + slice, positions);
      float* y[kRows];
      for (int32_t r = 0; r < count; ++r) y[r] = scores_[r] + slice;
      multiply(positions, args_.head_dim, key_scales_, query_rows_, count, y);
    }
    for (int32_t r = 0; r < count; ++r) weigh(r, std::clamp(length_[r] - page, 0, kPageTokens));
    for (int32_t slice = 0; slice < used; slice += kSlice) {
      const int32_t positions = std::min(kSlice, used - slice);
      pack(kValue, page + slice, positions);
      const float* x[kRows];
      for (int32_t r = 0; r < count; ++r) x[r] = scores_[r] + slice;
      multiply(args_.head_dim, positions, value_scales_, x, count, sum_rows_);
      for (int32_t r = 0; r < count; ++r) lanes_.add(sums_[r], products_[r], padded_);
    }
  }

  /// Turns the scores of a page into weights relative to the running maximum, and rescales what was summed before it.
  void weigh(int32_t r, int32_t visible) {
    std::fill(scores_[r] + visible, scores_[r] + kPageTokens, kNothing);
    const float rescale = lanes_.weigh(scores_[r], largest_[r], total_[r]);
    if (rescale != 1) lanes_.scale(sums_[r], rescale, padded_);
  }

  /// Packs `count` positions from `position` on into panels_.
  void pack(CachePart part, int32_t position, int32_t count) {
    const size_t start = cache_index(args_, index_, position, part, kv_head_);
    const size_t size = args_.cache_type == DType::e4m3 ? 1 : args_.cache_type == DType::bf16 ? 2 : 4;
    const void* from = static_cast<const uint8_t*>(args_.cache) + start * size;
    const auto pack_part = part == kKey ? lanes_.pack_keys : lanes_.pack_values;
    finite_ &= pack_part(args_.cache_type, from, count, args_.head_dim, panels_);
  }

  void multiply(int32_t out, int32_t in, const float* scales, const float* const* x, int32_t count,
                float* const* y) {
    const Format format = args_.cache_type == DType::e4m3   ? Format::e4m3
                          : args_.cache_type == DType::bf16 ? Format::bf16
                                                            : Format::f32;
    WeightView weight = {};
    weight.format = format;
    weight.layout = Layout::panels;
    weight.matrices = 1;
    weight.out = out;
    weight.in = in;
    weight.data = reinterpret_cast<const uint8_t*>(panels_);
    weight.row_scales = scales;
    plan_matmul(weight)(weight, 0, x, count, 0, out, y);
  }

  const AttentionLanes& lanes_ = attention_lanes();
  const AttentionArgs& args_;
  const Sequence& sequence_;
  const int32_t index_;
  const int32_t kv_head_;
  const int32_t padded_;
  int32_t token_[kRows];
  int32_t head_[kRows];
  int32_t length_[kRows];  ///< positions that the row sees
  float largest_[kRows];
  float total_[kRows];
  const float* query_rows_[kRows];
  float* sum_rows_[kRows];
  alignas(64) float key_scales_[kSlice];
  alignas(64) float value_scales_[kMaxHeadDim];
  alignas(64) float queries_[kRows][kMaxHeadDim];
  alignas(64) float scores_[kRows][kPageTokens];
  alignas(64) float sums_[kRows][kMaxHeadDim];
  alignas(64) float products_[kRows][kMaxHeadDim];
  alignas(64) uint32_t panels_[kSlice * kMaxHeadDim];
  bool finite_ = true;  ///< every cached element that some row of the tile sees
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
      const auto row_at = [&](int64_t place) {
        return std::min((std::max<int64_t>(place - start, 0) + cost - 1) / cost, rows);
      };
      const int64_t first = row_at(part.first);
      const int64_t last = row_at(part.last);
      if (first >= last) continue;
      Tile tile(args, s, kv_head);
      for (int64_t row = first; row < last; row += kRows) {
        tile.attend(int32_t(row), int32_t(std::min<int64_t>(kRows, last - row)));
      }
    }
  }
}

}  // namespace

void attention(const AttentionArgs& args, int phase, int worker, int workers) {
  if (phase == 0 || args.head_dim > kMaxHeadDim) {
    attention_reference(args, phase, worker, workers);
  } else {
    attend_all(args, worker, workers);
  }
}

}  // namespace nibblet
