#include "kernels/sample/choose.h"

#include <algorithm>

namespace nibblet {
namespace {

/// Candidates in a heap at ids[0, left); those taken so far, most likely first, are ids[count - 1], ids[count - 2], …
/// A sort of the whole vocabulary costs milliseconds, while the tokens that matter are mostly a few dozen.
class Candidates {
  auto less() const {
    return [this](int32_t a, int32_t b) { return scores_.before(b, a); };
  }

 public:
  Candidates(const Scores& scores, int32_t* ids, int32_t count, float largest, float temperature)
      : scores_(scores),
        ids_(ids),
        count_(count),
        left_(count),
        largest_(largest),
        temperature_(temperature) {
    std::make_heap(ids_, ids_ + left_, less());
  }

  int32_t left() const { return left_; }
  int32_t taken() const { return count_ - left_; }
  int32_t next() const { return ids_[0]; }
  int32_t taken_id(int32_t rank) const { return ids_[count_ - 1 - rank]; }
  float weight(int32_t id) const { return relative_weight(scores_(id), largest_, temperature_); }

  void take() {
    std::pop_heap(ids_, ids_ + left_, less());
    --left_;
  }

 private:
  const Scores& scores_;
  int32_t* ids_;
  int32_t count_;
  int32_t left_;
  float largest_;
  float temperature_;
};

/// The k best ids into ids[0, k), by a heap whose top is the worst of them.
void collect_top_k(const Scores& scores, int32_t k, int32_t* ids) {
  const auto better = [&](int32_t a, int32_t b) { return scores.before(a, b); };
  for (int32_t id = 0; id < k; ++id) ids[id] = id;
  std::make_heap(ids, ids + k, better);
  float worst = scores(ids[0]);
  for (int32_t id = k; id < scores.vocabulary; ++id) {
    // Ids ascend, so a tie with the worst never displaces it.
    if (!(scores(id) > worst)) continue;
    std::pop_heap(ids, ids + k, better);
    ids[k - 1] = id;
    std::push_heap(ids, ids + k, better);
    worst = scores(ids[0]);
  }
}

}  // namespace

int32_t choose_token(const Scores& scores, const Sampling& sampling, float uniform, int32_t* scratch) {
  const Largest best = find_largest(scores, scores.vocabulary);
  const float temperature = sampling.temperature;
  if (!(temperature > 0) || best.score == -std::numeric_limits<float>::infinity()) return best.id;
  const auto weight = [&](int32_t id) { return relative_weight(scores(id), best.score, temperature); };
  const bool nucleus = sampling.top_p < 1;

  int32_t count = 0;
  double total = 0;
  if (sampling.top_k > 0 && sampling.top_k < scores.vocabulary) {
    count = sampling.top_k;
    collect_top_k(scores, count, scratch);
    // Sorted, because the sum must not depend on the shape of a heap.
    std::sort(scratch, scratch + count, [&](int32_t a, int32_t b) { return scores.before(a, b); });
    for (int32_t i = 0; i < count; ++i) total += weight(scratch[i]);
  } else {
    for (int32_t id = 0; id < scores.vocabulary; ++id) total += weight(id);
    double least = 0;
    if (nucleus || !(sampling.min_p > 0)) {
      // The walk ends once it holds the fraction `reach` of the whole, so it cannot come to tokens that would together
      // fit into the rest. The factor covers the rounding of the sums.
      const double reach = nucleus ? std::max(sampling.top_p, 0.0f) : uniform;
      least = 0.999 * (1 - reach) * total / scores.vocabulary;
    }
    for (int32_t id = 0; id < scores.vocabulary; ++id) {
      if (weight(id) >= least) scratch[count++] = id;
    }
  }
  if (!nucleus && sampling.min_p > 0) {
    // Without top-p the mass of the kept tokens must be known before the walk.
    total = 0;
    int32_t kept = 0;
    for (int32_t i = 0; i < count; ++i) {
      const float w = weight(scratch[i]);
      if (w < sampling.min_p && scratch[i] != best.id) continue;
      total += w;
      scratch[kept++] = scratch[i];
    }
    count = kept;
  }

  Candidates candidates(scores, scratch, count, best.score, temperature);
  double mass = 0;
  if (nucleus) {
    while (candidates.left() > 0) {
      const float w = candidates.weight(candidates.next());
      if (candidates.taken() > 0 && w < sampling.min_p) break;
      candidates.take();
      mass += w;
      if (mass >= double(sampling.top_p) * total) break;
    }
    const double target = uniform * mass;
    double walked = 0;
    for (int32_t rank = 0; rank + 1 < candidates.taken(); ++rank) {
      walked += candidates.weight(candidates.taken_id(rank));
      if (walked > target) return candidates.taken_id(rank);
    }
    return candidates.taken_id(candidates.taken() - 1);
  }
  const double target = uniform * total;
  while (candidates.left() > 1) {
    mass += candidates.weight(candidates.next());
    if (mass > target) return candidates.next();
    candidates.take();
  }
  return candidates.next();
}

}  // namespace nibblet
