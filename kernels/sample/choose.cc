#include "kernels/sample/choose.h"

#include <algorithm>
#include <utility>

#include "kernels/numerics/exp.h"
#include "kernels/sample/buckets.h"

namespace nibblet {
namespace {

/// Some tokens of a row, in no order. Sorting a whole vocabulary would take milliseconds; selecting takes a few passes.
class Candidates {
 public:
  Candidates(const Scores& scores, float temperature, int32_t best, int32_t* ids)
      : scores_(scores), temperature_(temperature), best_(best), largest_(scores(best)), ids_(ids) {}

  /// As relative_weight, with the exponential of Buckets.
  float weight(int32_t id) const {
    const float score = scores_(id);
    return score == largest_ ? 1.0f : vector_exp((score - largest_) / temperature_);
  }

  double total() const {
    double sum = 0;
    for (int32_t i = 0; i < count_; ++i) sum += weight(ids_[i]);
    return sum;
  }

  /// The k best tokens of the vocabulary, by a heap whose top is the worst of them.
  void collect_best(int32_t k) {
    const auto better = [this](int32_t a, int32_t b) { return scores_.before(a, b); };
    for (int32_t id = 0; id < k; ++id) ids_[id] = id;
    std::make_heap(ids_, ids_ + k, better);
    float worst = scores_(ids_[0]);
    for (int32_t id = k; id < scores_.vocabulary; ++id) {
      // Ids ascend, so a tie with the worst never displaces it.
      if (!(scores_(id) > worst)) continue;
      std::pop_heap(ids_, ids_ + k, better);
      ids_[k - 1] = id;
      std::push_heap(ids_, ids_ + k, better);
      worst = scores_(ids_[0]);
    }
    count_ = k;
  }

  /// The tokens of the vocabulary that weigh at least `least`, and the best one in any case.
  void collect_heavy(const Buckets& buckets, double least) {
    count_ = buckets.collect_heavy(least, best_, ids_);
  }

  void collect_bucket(const Buckets& buckets, int32_t bucket) { count_ = buckets.collect(bucket, ids_); }

  void drop_light(float least) {
    const auto light = [&](int32_t id) { return weight(id) < least && id != best_; };
    count_ = int32_t(std::remove_if(ids_, ids_ + count_, light) - ids_);
  }

  /// Drops what comes after the smallest set of best tokens that weighs at least `mass`.
  void keep_mass(double mass) {
    count_ = 1 + select([=](double sum) { return sum >= mass; });
  }

  /// The first token, from the best down, whose cumulative weight exceeds `mass`; otherwise the last.
  int32_t token_at(double mass) {
    return ids_[select([=](double sum) { return sum > mass; })];
  }

 private:
  /// Moves the tokens so that the first i + 1 are the smallest set of best ones whose weight satisfies `reached`, the
  /// last of them at i, and returns i; the last index when no set does. Quickselect by weight instead of by rank.
  template <typename Reached>
  int32_t select(Reached reached) {
    int32_t first = 0;
    int32_t last = count_;
    double before = 0;
    while (first < last) {
      const int32_t middle = partition(first, last);
      double sum = before;
      for (int32_t i = first; i < middle; ++i) sum += weight(ids_[i]);
      if (middle > first && reached(sum)) {
        last = middle;
        continue;
      }
      sum += weight(ids_[middle]);
      if (reached(sum)) return middle;
      before = sum;
      first = middle + 1;
    }
    // Rounding can put the end of a range just out of reach.
    return std::max(first - 1, 0);
  }

  /// Splits [first, last) around the median of three of its tokens. @return the index of that token
  int32_t partition(int32_t first, int32_t last) {
    int32_t candidates[3] = {first, first + (last - first) / 2, last - 1};
    std::sort(candidates, candidates + 3,
              [this](int32_t a, int32_t b) { return scores_.before(ids_[a], ids_[b]); });
    std::swap(ids_[candidates[1]], ids_[last - 1]);
    const int32_t pivot = ids_[last - 1];
    int32_t middle = first;
    for (int32_t i = first; i + 1 < last; ++i) {
      if (scores_.before(ids_[i], pivot)) std::swap(ids_[i], ids_[middle++]);
    }
    std::swap(ids_[middle], ids_[last - 1]);
    return middle;
  }

  const Scores& scores_;
  float temperature_;
  int32_t best_;
  float largest_;
  int32_t* ids_;
  int32_t count_ = 0;
};

/// The token among the whole vocabulary, or its nucleus.
int32_t choose_from_all(Candidates& candidates, const Buckets& buckets, float top_p, float uniform) {
  double mass = buckets.total();
  double start = 0;
  int32_t cut = Buckets::kCount;
  if (top_p < 1) {
    const double reach = double(top_p) * mass;
    cut = buckets.find([=](double sum) { return sum >= reach; }, start);
    candidates.collect_bucket(buckets, cut);
    candidates.keep_mass(reach - start);
    mass = start + candidates.total();
  }
  const double target = uniform * mass;
  double before;
  const int32_t bucket = buckets.find([=](double sum) { return sum > target; }, before);
  if (bucket >= cut) return candidates.token_at(target - start);
  candidates.collect_bucket(buckets, bucket);
  return candidates.token_at(target - before);
}

/// As find_largest of the vocabulary.
Largest find_best(const Scores& scores) {
  if (scores.seen != nullptr) return find_largest(scores, scores.vocabulary);
  const float largest = sample_lanes().largest(scores.logits, scores.vocabulary);
  if (largest == -std::numeric_limits<float>::infinity()) return {0, largest};
  return {sample_lanes().find(scores.logits, scores.vocabulary, largest), largest};
}

}  // namespace

int32_t choose_token(const Scores& scores, const Sampling& sampling, float uniform, int32_t* scratch) {
  const Largest best = find_best(scores);
  if (!(sampling.temperature > 0) || best.score == -std::numeric_limits<float>::infinity()) return best.id;

  Candidates candidates(scores, sampling.temperature, best.id, scratch);
  const bool nucleus = sampling.top_p < 1;
  double total = 0;
  if (sampling.top_k > 0 && sampling.top_k < scores.vocabulary) {
    candidates.collect_best(sampling.top_k);
    total = candidates.total();
  } else {
    Buckets buckets(scores, best.score, sampling.temperature);
    if (nucleus || !(sampling.min_p > 0)) buckets.survey();
    if (!(sampling.min_p > 0)) return choose_from_all(candidates, buckets, sampling.top_p, uniform);
    total = buckets.total();
    // The walk of a nucleus ends once it holds the fraction top_p of the whole, so it cannot come to tokens that would
    // together fit into the rest. The factor covers the rounding of the sums.
    const double rest = 0.999 * (1 - std::max(sampling.top_p, 0.0f)) * total / scores.vocabulary;
    candidates.collect_heavy(buckets, nucleus ? rest : double(sampling.min_p));
  }
  if (nucleus) candidates.keep_mass(double(sampling.top_p) * total);
  if (sampling.min_p > 0) candidates.drop_light(sampling.min_p);
  if (nucleus || sampling.min_p > 0) total = candidates.total();
  return candidates.token_at(uniform * total);
}

}  // namespace nibblet
