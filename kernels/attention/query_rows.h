#pragma once

#include <algorithm>
#include <limits>

#include "kernels/attention/cache.h"
#include "kernels/attention/lanes.h"
#include "kernels/linear/matmul.h"

// Both products of attention are the inner product of linear: scores = queries · keys and sums = weights · values, with a
// slice of a page, packed into panels, as the weight. So the variant of the machine does the arithmetic here.
namespace nibblet {

/// Query rows (a token and a head) that share the packing of a page.
constexpr int32_t kQueryRows = 16;
constexpr int32_t kMaxHeadDim = 256;

/// Up to kQueryRows query rows of one sequence and kv head: of its tokens × heads, those from `first` on.
class QueryRows {
 public:
  QueryRows(const AttentionArgs& args, int32_t sequence, int32_t kv_head)
      : args_(args),
        sequence_(args.step->sequences[sequence]),
        index_(sequence),
        kv_head_(kv_head),
        padded_(round_up(args.head_dim, kBlockInputs)) {
    std::fill(key_scales_, key_scales_ + kSlice, args.scale * cache_scale(args, kKey));
    std::fill(value_scales_, value_scales_ + padded_, cache_scale(args, kValue));
    for (int32_t r = 0; r < kQueryRows; ++r) query_rows_[r] = queries_[r];
  }

  void place(int32_t first, int32_t count) {
    const int32_t group = args_.heads / args_.kv_heads;
    count_ = count;
    for (int32_t r = 0; r < count; ++r) {
      token_[r] = sequence_.first + (first + r) / group;
      head_[r] = kv_head_ * group + (first + r) % group;
      length_[r] = sequence_.position + (first + r) / group + 1;
    }
  }
  void load_queries() {
    for (int32_t r = 0; r < count_; ++r) {
      const size_t query = size_t(token_[r]) * qkv_row(args_) + size_t(head_[r]) * args_.head_dim;
      for (int32_t i = 0; i < args_.head_dim; ++i) {
        queries_[r][i] = read_element(args_.qkv, args_.type, query + i);
      }
      std::fill(queries_[r] + args_.head_dim, queries_[r] + padded_, 0.0f);
    }
  }

  /// Channels with those up to whole panels.
  int32_t padded() const { return padded_; }
  /// Positions that a row sees; the last row sees the most.
  int32_t length() const { return length_[count_ - 1]; }
  int32_t visible(int32_t r, int32_t page) const { return std::clamp(length_[r] - page, 0, kPageTokens); }

  /// Whether the keys or values that some row sees of the page at `page` are all finite.
  bool is_finite(CachePart part, int32_t page) const {
    return lanes_.finite(args_.cache_type, cached(part, page, 0), used(page) * args_.head_dim);
  }

  /// Scores of the rows with the positions of a page that some row sees. @param scores  of each row
  void score(int32_t page, float* const* scores) {
    for (int32_t slice = 0; slice < used(page); slice += kSlice) {
      const int32_t positions = std::min(kSlice, used(page) - slice);
      lanes_.pack_keys(args_.cache_type, cached(kKey, page + slice, 0), positions, args_.head_dim, panels_);
      float* y[kQueryRows];
      for (int32_t r = 0; r < count_; ++r) y[r] = scores[r] + slice;
      multiply(positions, args_.head_dim, key_scales_, query_rows_, y);
    }
  }

  /// Adds the values of a page, times `weights`, to channels [first, first + channels) of the sums of each row, which
  /// sums[r] begins with.
  void add_values(int32_t page, const float* const* weights, int32_t first, int32_t channels,
                  float* const* sums) {
    float* products[kQueryRows];
    for (int32_t r = 0; r < count_; ++r) products[r] = products_[r];
    for (int32_t slice = 0; slice < used(page); slice += kSlice) {
      const int32_t positions = std::min(kSlice, used(page) - slice);
      lanes_.pack_values(args_.cache_type, cached(kValue, page + slice, first), positions, args_.head_dim,
                         channels, panels_);
      const float* x[kQueryRows];
      for (int32_t r = 0; r < count_; ++r) x[r] = weights[r] + slice;
      multiply(channels, positions, value_scales_, x, products);
      for (int32_t r = 0; r < count_; ++r) lanes_.add(sums[r], products_[r], round_up(channels, kPanelRows));
    }
  }

  /// Turns the scores of a page into weights relative to the row's running maximum.
  /// @return what earlier sums are to be multiplied by
  float weigh(int32_t r, int32_t page, float* scores, float& largest, float& total) const {
    std::fill(scores + visible(r, page), scores + kPageTokens, -std::numeric_limits<float>::infinity());
    return lanes_.weigh(scores, largest, total);
  }
  void scale(float* sums, float factor, int32_t channels) const {
    if (factor != 1) lanes_.scale(sums, factor, round_up(channels, kPanelRows));
  }

  void write(int32_t r, int32_t first, int32_t channels, const float* sums, float total) const {
    const size_t out = (size_t(token_[r]) * args_.heads + head_[r]) * args_.head_dim + first;
    for (int32_t i = 0; i < channels; ++i) write_element(args_.y, args_.type, out + i, sums[i] / total);
  }
  /// A row for itself: what a later token cached must not reach an earlier one.
  void attend_alone(int32_t r) const { attend_reference(args_, sequence_, token_[r], head_[r]); }

 private:
  /// Positions of a slice; the panels of one slice are at most 32 KiB.
  static constexpr int32_t kSlice = 32;

  int32_t used(int32_t page) const { return std::min(length() - page, kPageTokens); }

  const void* cached(CachePart part, int32_t position, int32_t channel) const {
    const size_t size = args_.cache_type == DType::e4m3 ? 1 : args_.cache_type == DType::bf16 ? 2 : 4;
    const size_t start = cache_index(args_, index_, position, part, kv_head_) + size_t(channel);
    return static_cast<const uint8_t*>(args_.cache) + start * size;
  }

  void multiply(int32_t out, int32_t in, const float* scales, const float* const* x, float* const* y) {
    WeightView weight = {};
    weight.format = args_.cache_type == DType::e4m3   ? Format::e4m3
                    : args_.cache_type == DType::bf16 ? Format::bf16
                                                      : Format::f32;
    weight.layout = Layout::panels;
    weight.matrices = 1;
    weight.out = out;
    weight.in = in;
    weight.data = reinterpret_cast<const uint8_t*>(panels_);
    weight.row_scales = scales;
    plan_matmul(weight)(weight, 0, x, count_, 0, out, y);
  }

  const AttentionLanes& lanes_ = attention_lanes();
  const AttentionArgs& args_;
  const Sequence& sequence_;
  const int32_t index_;
  const int32_t kv_head_;
  const int32_t padded_;
  int32_t count_ = 0;
  int32_t token_[kQueryRows];
  int32_t head_[kQueryRows];
  int32_t length_[kQueryRows];
  const float* query_rows_[kQueryRows];
  alignas(64) float key_scales_[kSlice];
  alignas(64) float value_scales_[kMaxHeadDim];
  alignas(64) float queries_[kQueryRows][kMaxHeadDim];
  alignas(64) float products_[kQueryRows][kMaxHeadDim];
  alignas(64) uint32_t panels_[kSlice * kMaxHeadDim];
};

}  // namespace nibblet
