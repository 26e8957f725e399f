#include "kernels/attention/split.h"

#include <algorithm>
#include <limits>

#include "kernels/attention/query_rows.h"
#include "kernels/numerics/partition.h"

namespace nibblet {
namespace {

/// Pages of a step below which two barriers more may cost what is gained (bench/notes.md).
constexpr int64_t kFewestPages = 6;
/// The total of a row that sees an element which is not finite: it has its output already.
constexpr float kDone = -1;

int32_t pages_of(const Sequence& sequence) {
  return (sequence.position + sequence.count + kPageTokens - 1) / kPageTokens;
}

/// The rows of one sequence and kv head, and their place in the scratch.
struct Item {
  int32_t sequence;
  int32_t kv_head;
  int32_t rows;
  int32_t pages;
  float* scratch;

  /// A row's scores, then weights, page after page; then for each page what earlier sums are multiplied by; then the total.
  float* scores(int32_t r) const { return scratch + size_t(r) * attention_row_floats(pages); }
  float* rescales(int32_t r) const { return scores(r) + size_t(pages) * kPageTokens; }
  float& total(int32_t r) const { return rescales(r)[pages]; }
};

template <class Body>
void for_each_item(const AttentionArgs& args, const Body& body) {
  const Step& step = *args.step;
  const int32_t group = args.heads / args.kv_heads;
  float* scratch = args.scratch;
  for (int32_t s = 0; s < step.sequence_count; ++s) {
    const Sequence& sequence = step.sequences[s];
    if (!is_live(sequence, args.slots)) continue;
    const int32_t pages = pages_of(sequence);
    for (int32_t kv_head = 0; kv_head < args.kv_heads; ++kv_head) {
      const Item item = {s, kv_head, sequence.count * group, pages, scratch};
      body(item);
      scratch += size_t(item.rows) * attention_row_floats(pages);
    }
  }
}

/// Calls body(args, item, first, last) for a worker's part of the units of all items.
/// @param cost  of a unit of an item, above 0
template <class Units, class Cost, class Body>
void for_part(const AttentionArgs& args, int worker, int workers, const Units& units, const Cost& cost,
              const Body& body) {
  int64_t total = 0, start = 0;
  for_each_item(args, [&](const Item& item) { total += units(item) * cost(item); });
  const Range part = partition(total, worker, workers);
  for_each_item(args, [&](const Item& item) {
    const Range mine = units_of(part, start, cost(item), units(item));
    if (mine.first < mine.last) body(args, item, int32_t(mine.first), int32_t(mine.last));
    start += units(item) * cost(item);
  });
}

void score_pages(const AttentionArgs& args, const Item& item, int32_t first, int32_t last) {
  QueryRows rows(args, item.sequence, item.kv_head);
  rows.place(0, item.rows);
  rows.load_queries();
  for (int32_t page = first; page < last; ++page) {
    const int32_t position = page * kPageTokens;
    const bool finite = rows.is_finite(kKey, position) && rows.is_finite(kValue, position);
    float* scores[kQueryRows];
    for (int32_t r = 0; r < item.rows; ++r) {
      scores[r] = item.scores(r) + position;
      item.rescales(r)[page] = finite ? 1.0f : 0.0f;
    }
    rows.score(position, scores);
  }
}

void weigh_rows(const AttentionArgs& args, const Item& item, int32_t first, int32_t last) {
  QueryRows rows(args, item.sequence, item.kv_head);
  rows.place(0, item.rows);
  for (int32_t r = first; r < last; ++r) {
    float* rescales = item.rescales(r);
    float& total = item.total(r);
    if (std::find(rescales, rescales + item.pages, 0.0f) != rescales + item.pages) {
      rows.attend_alone(r);
      total = kDone;
      continue;
    }
    total = 0;
    float largest = -std::numeric_limits<float>::infinity();
    for (int32_t page = 0; page < item.pages; ++page) {
      const int32_t position = page * kPageTokens;
      rescales[page] = rows.weigh(r, position, item.scores(r) + position, largest, total);
    }
  }
}

void sum_channels(const AttentionArgs& args, const Item& item, int32_t first_panel, int32_t last_panel) {
  // All rows of an item are done, or none.
  if (item.total(0) == kDone) return;
  QueryRows rows(args, item.sequence, item.kv_head);
  rows.place(0, item.rows);
  const int32_t first = first_panel * kPanelRows,
                channels = std::min(last_panel * kPanelRows, args.head_dim) - first;
  alignas(64) float sums[kQueryRows][kMaxHeadDim];
  float* sum_rows[kQueryRows];
  for (int32_t r = 0; r < item.rows; ++r) {
    std::fill(sums[r], sums[r] + round_up(channels, kPanelRows), 0.0f);
    sum_rows[r] = sums[r];
  }
  for (int32_t page = 0; page < item.pages; ++page) {
    const int32_t position = page * kPageTokens;
    const float* weights[kQueryRows];
    for (int32_t r = 0; r < item.rows; ++r) {
      weights[r] = item.scores(r) + position;
      rows.scale(sums[r], item.rescales(r)[page], channels);
    }
    rows.add_values(position, weights, first, channels, sum_rows);
  }
  for (int32_t r = 0; r < item.rows; ++r) rows.write(r, first, channels, sums[r], item.total(r));
}

}  // namespace

bool attention_is_split(const AttentionArgs& args) {
  if (args.head_dim > kMaxHeadDim) return false;
  const Step& step = *args.step;
  const int32_t group = args.heads / args.kv_heads;
  size_t floats = 0;
  int64_t pages = 0;
  for (int32_t s = 0; s < step.sequence_count; ++s) {
    const Sequence& sequence = step.sequences[s];
    if (!is_live(sequence, args.slots)) continue;
    if (int64_t(sequence.count) * group > kQueryRows) return false;
    pages += pages_of(sequence);
    floats += size_t(sequence.count) * size_t(args.heads) * attention_row_floats(pages_of(sequence));
  }
  return pages >= kFewestPages && floats <= args.scratch_floats;
}

void attention_split(const AttentionArgs& args, int phase, int worker, int workers) {
  const auto one = [](const Item&) { return int64_t{1}; };
  const auto pages = [](const Item& item) { return int64_t(item.pages); };
  const auto rows = [](const Item& item) { return int64_t(item.rows); };
  const auto panels = [&](const Item&) { return int64_t(round_up(args.head_dim, kPanelRows) / kPanelRows); };
  if (phase == 1) for_part(args, worker, workers, pages, one, score_pages);
  if (phase == 2) for_part(args, worker, workers, rows, pages, weigh_rows);
  if (phase == 3) for_part(args, worker, workers, panels, pages, sum_channels);
}

}  // namespace nibblet
