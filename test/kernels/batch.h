#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "kernels/numerics/element.h"
#include "kernels/step.h"
#include "test/kernels/harness.h"

namespace nibblet::test {

/// Random numbers that are the same on every machine (splitmix64).
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t bits() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
  }
  int32_t below(int32_t n) { return int32_t(bits() % uint64_t(n)); }
  double uniform() { return double(bits() >> 11) * 0x1p-53; }
  double normal() {
    return std::sqrt(-2 * std::log(1 - uniform())) * std::cos(6.283185307179586 * uniform());
  }
  std::vector<float> normals(size_t count, double scale = 1, double mean = 0) {
    std::vector<float> values(count);
    for (float& value : values) value = float(mean + scale * normal());
    return values;
  }

 private:
  uint64_t state_;
};

/// An array of f32, bf16 or e4m3.
class Elements {
 public:
  /// All bytes 0xff: NaN in every type.
  Elements(DType type, size_t count) : type_(type), bytes_(count * dtype_bytes(type), 0xff) {}
  Elements(DType type, const std::vector<float>& values) : Elements(type, values.size()) {
    for (size_t i = 0; i < values.size(); ++i) write_element(data(), type, i, values[i]);
  }
  void* data() { return bytes_.data(); }
  const void* data() const { return bytes_.data(); }
  size_t size() const { return bytes_.size() / dtype_bytes(type_); }
  float operator[](size_t i) const { return read_element(bytes_.data(), type_, i); }
  bool operator==(const Elements& other) const { return bytes_ == other.bytes_; }
  /// `count` elements from `from` on.
  Elements part(size_t from, size_t count) const {
    Elements result(type_, count);
    copy(result, 0, from, count);
    return result;
  }
  void copy(Elements& to, size_t at, size_t from, size_t count) const {
    const size_t size = dtype_bytes(type_);
    if (count > 0) std::memcpy(to.bytes_.data() + at * size, bytes_.data() + from * size, count * size);
  }

 private:
  DType type_;
  std::vector<uint8_t> bytes_;
};

/// Builds a Step. The lists it points into live here.
class Batch {
 public:
  explicit Batch(int32_t pages_per_sequence = 0) : pages_per_sequence_(pages_per_sequence) {}

  /// Adds a sequence of `count` tokens. @return index of its first token
  int32_t add(int32_t slot, int32_t position, int32_t count, uint32_t flags = 0,
              const std::vector<int32_t>& pages = {}) {
    const int32_t first = int32_t(ids.size());
    sequences.push_back({slot, first, count, position, flags, 0});
    ids.resize(ids.size() + size_t(count), -1);
    sequence_of_.resize(ids.size(), int32_t(sequences.size()) - 1);
    pages_.resize(sequences.size() * size_t(pages_per_sequence_),
                  1 << 28);  // an unused page must not be read
    std::copy(pages.begin(), pages.end(), pages_.end() - pages_per_sequence_);
    return first;
  }

  /// Asks for the logits of the last token of the last sequence added, and samples.
  void sample_last(const Sampling& parameters) {
    const int32_t index = int32_t(sequences.size()) - 1;
    rows.push_back({sequences.back().first + sequences.back().count - 1, index});
    sampling.push_back(parameters);
  }

  /// @return where `values` start in the lists
  int32_t list(const std::vector<int32_t>& values) {
    const int32_t first = int32_t(lists.size());
    lists.insert(lists.end(), values.begin(), values.end());
    return first;
  }

  Step step() const {
    return {int32_t(ids.size()),  int32_t(sequences.size()),
            int32_t(rows.size()), pages_per_sequence_,
            ids.data(),           sequence_of_.data(),
            sequences.data(),     pages_.data(),
            rows.data(),          sampling.empty() ? nullptr : sampling.data(),
            lists.data()};
  }

  std::vector<int32_t> ids;
  std::vector<Sequence> sequences;
  std::vector<LogitsRow> rows;
  std::vector<Sampling> sampling;
  std::vector<int32_t> lists;

 private:
  int32_t pages_per_sequence_;
  std::vector<int32_t> sequence_of_;
  std::vector<int32_t> pages_;
};

/// Runs every phase of an op as `workers` workers, the last one first: a phase may not rely on their order.
template <typename Args>
void run_phases(void (*op)(const Args&, int, int, int), int phases, const Args& args, int workers = 1) {
  for (int phase = 0; phase < phases; ++phase) {
    for (int worker = workers - 1; worker >= 0; --worker) op(args, phase, worker, workers);
  }
}

}  // namespace nibblet::test
