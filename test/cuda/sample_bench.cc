#include "test/cuda/sampler.h"

namespace nibblet::test {
namespace {

struct Setting {
  const char* name;
  float temperature;
  int32_t top_k;
  float top_p;
  float min_p;
  int32_t logprobs;
  double spread;  ///< standard deviation of the logits
};

constexpr Setting kSettings[] = {
    {"greedy", 0, 0, 1, 0, -1, 3},
    {"greedy, 20 log probabilities", 0, 0, 1, 0, 20, 3},
    {"temperature 1", 1, 0, 1, 0, -1, 3},
    {"temperature 1, flat logits", 1, 0, 1, 0, -1, 0.5},
    {"temperature 0.6, top-p 0.95", 0.6f, 0, 0.95f, 0, -1, 3},
    {"temperature 1, top-k 40", 1, 40, 1, 0, -1, 3},
    {"temperature 0.8, top-k 40, top-p 0.95, min-p 0.05", 0.8f, 40, 0.95f, 0.05f, -1, 3}};

}  // namespace

TEST(cuda_bench_sample) {
  if (!benchmarks_asked_for()) return;
  constexpr int32_t kVocabulary = 131072;
  Random random(1);
  for (const int32_t rows : {1, 8, 64}) {
    for (const Setting& setting : kSettings) {
      Batch batch;
      for (int32_t row = 0; row < rows; ++row) {
        batch.add(row, 100, 1, kDecode);
        Sampling s = plain_sampling();
        s.temperature = setting.temperature;
        s.top_k = setting.top_k;
        s.top_p = setting.top_p;
        s.min_p = setting.min_p;
        s.logprobs = setting.logprobs;
        s.seed_low = uint32_t(row);
        batch.sample_last(s);
      }
      // One row of random logits, shifted for each of the others: normals are slow to make.
      const std::vector<float> row_logits = random.normals(kVocabulary, setting.spread);
      std::vector<float> logits;
      for (int32_t row = 0; row < rows; ++row) {
        const auto middle = row_logits.begin() + row * 1237;
        logits.insert(logits.end(), middle, row_logits.end());
        logits.insert(logits.end(), row_logits.begin(), middle);
      }
      const DeviceArray<float> device_logits(logits);
      const DeviceArray<Slot> slots(std::vector<Slot>(size_t(rows), Slot{0, 1, 0, -1, 0, {}}));
      const DeviceArray<Result> results(static_cast<size_t>(rows));
      const DeviceStep step(batch.step());
      const SampleScratch scratch(kVocabulary, rows);
      SampleArgs args{};
      args.step = step.data();
      args.slots = slots.data();
      args.vocabulary = kVocabulary;
      args.logits = device_logits.data();
      args.results = results.data();
      // The logits are as warm as the head leaves them.
      const double time = graph_microseconds(20, 10, [&](int) {
        check_cuda(sample_cuda(args, rows, scratch.workspace.data(), scratch.counters.data(), cuda_target()),
                   "sample_cuda");
      });
      std::printf("    %2d rows, %s: %6.2f us, %5.0f GB/s\n", rows, setting.name, time,
                  double(rows) * kVocabulary * 4 / time / 1e3);
    }
  }
}

}  // namespace nibblet::test
