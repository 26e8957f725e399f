#pragma once

#include <algorithm>
#include <memory>

#include "kernels/sample/cuda.h"
#include "test/cuda/device.h"
#include "test/kernels/sampler.h"

namespace nibblet::test {

/// The workspace and the counters of a call; the counters have to be zero after it.
struct SampleScratch {
  DeviceArray<uint8_t> workspace, counters;

  SampleScratch(int32_t vocabulary, int32_t capacity) : SampleScratch(scratch(vocabulary, capacity)) {}

 private:
  explicit SampleScratch(const CudaScratch& scratch)
      : workspace(scratch.workspace), counters(scratch.counters, 0) {}
  static CudaScratch scratch(int32_t vocabulary, int32_t capacity) {
    SampleArgs args{};
    args.vocabulary = vocabulary;
    return sample_cuda_scratch(args, capacity, cuda_target());
  }
};

/// What Sampler is on the CPU.
class CudaSampler {
 public:
  /// Begins with the state of `from`.
  CudaSampler(const Sampler& from, int32_t capacity)
      : vocabulary_(from.vocabulary),
        capacity_(capacity),
        slots_(from.slots),
        seen_(from.seen),
        counts_(from.counts),
        results_(size_t(capacity)),
        scratch_(from.vocabulary, capacity) {}

  /// @param logits  [rows, vocabulary]; the rows up to the capacity are NaN
  std::vector<Result> run(const Batch& batch, const std::vector<float>& logits) {
    Result garbage;
    std::memset(&garbage, 0xee, sizeof garbage);
    results_.write(std::vector<Result>(results_.size(), garbage).data());
    std::vector<float> all = logits;
    all.resize(size_t(capacity_) * vocabulary_, std::nanf(""));
    const DeviceArray<float> device_logits(all);
    const DeviceStep step(batch.step());
    SampleArgs args{};
    args.step = step.data();
    args.slots = slots_.data();
    args.vocabulary = vocabulary_;
    args.logits = device_logits.data();
    args.seen = seen_.data();
    args.counts = counts_.data();
    args.results = results_.data();
    check_cuda(
        sample_cuda(args, capacity_, scratch_.workspace.data(), scratch_.counters.data(), cuda_target()),
        "sample_cuda");
    std::vector<Result> results = results_.read();
    for (size_t row = batch.rows.size(); row < results.size(); ++row) CHECK(results[row] == garbage);
    results.resize(batch.rows.size());
    for (const uint8_t byte : scratch_.counters.read()) CHECK_EQ(byte, 0);
    for (const auto* bytes : {&scratch_.workspace, &scratch_.counters, &seen_}) CHECK(bytes->guards_intact());
    CHECK(slots_.guards_intact() && counts_.guards_intact() && results_.guards_intact());
    return results;
  }

  std::vector<Slot> slots() const { return slots_.read(); }
  /// Slots, seen tokens and counts are those of `cpu`.
  bool has_state_of(const Sampler& cpu) const {
    return slots_.read() == cpu.slots && seen_.read() == cpu.seen && counts_.read() == cpu.counts;
  }

 private:
  int32_t vocabulary_, capacity_;
  DeviceArray<Slot> slots_;
  DeviceArray<uint8_t> seen_;
  DeviceArray<uint32_t> counts_;
  DeviceArray<Result> results_;
  SampleScratch scratch_;
};

/// The same tokens, flags and alternatives; log probabilities within what float32 exponentials and the order of sums allow.
inline void check_same_result(const Result& gpu, const Result& cpu) {
  CHECK_EQ(gpu.token, cpu.token);
  CHECK_EQ(gpu.flags, cpu.flags);
  CHECK_NEAR(gpu.logprob, cpu.logprob, 3e-6);
  CHECK_EQ(gpu.top_count, cpu.top_count);
  for (int i = 0; i < kTopLogprobs; ++i) {
    CHECK_EQ(gpu.top_ids[i], cpu.top_ids[i]);
    CHECK_NEAR(gpu.top_logprobs[i], cpu.top_logprobs[i], 3e-6);
  }
}

}  // namespace nibblet::test
