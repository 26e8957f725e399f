#include "test/cuda/sampler.h"

// What sampling carries from step to step, run beside the CPU: slots, results and counts are the same after every step.
namespace nibblet::test {
namespace {

/// A server's life in small: replies start, are read in chunks, decode, stop, and their slots are taken again.
class Server {
 public:
  Server(int32_t vocabulary, int32_t slots, bool greedy, uint64_t seed)
      : vocabulary_(vocabulary),
        greedy_(greedy),
        random_(seed),
        cpu_(vocabulary, slots),
        replies_(size_t(slots)) {}

  /// One step on both.
  void step(CudaSampler& gpu) {
    const Batch batch = next_batch();
    const std::vector<float> logits = next_logits(batch.rows.size());
    const std::vector<Result> results = gpu.run(batch, logits);
    const std::vector<Result> expected = cpu_.run(batch, logits);
    for (size_t row = 0; row < results.size(); ++row) check_same_result(results[row], expected[row]);
    CHECK(gpu.has_state_of(cpu_));
    for (const Result& result : expected) seen_flags_ |= result.flags;
  }

  const Sampler& cpu() const { return cpu_; }
  uint32_t seen_flags() const { return seen_flags_; }

 private:
  struct Reply {
    int32_t position = -1;  ///< -1: none
    int32_t left = 0;       ///< prompt chunks
    uint32_t flags = 0;
    Sampling sampling{};
  };

  void begin(Reply& reply) {
    reply = {0, random_.below(3), random_.below(2) ? uint32_t{kCount} : 0, plain_sampling()};
    Sampling& s = reply.sampling;
    s.temperature = greedy_ ? 0.0f : float(0.3 + random_.uniform());
    if (!greedy_ && random_.below(2)) s.top_k = 1 + random_.below(40);
    if (!greedy_ && random_.below(2)) s.top_p = 0.9f;
    if (random_.below(2)) s.repetition = float(0.7 + random_.uniform());
    if (random_.below(2)) s.presence = float(random_.normal());
    if (random_.below(2)) s.frequency = float(random_.normal());
    if (random_.below(3) == 0) s.logprobs = random_.below(kTopLogprobs + 1);
    if (random_.below(2)) s.flags |= kThinking;
    s.budget = random_.below(4) - 1;
    s.seed_low = uint32_t(random_.bits());
  }

  Batch next_batch() {
    Batch batch;
    const std::vector<int32_t> lists = {2, 3, 5, 7, 20, 5, 21};
    batch.list(lists);
    for (size_t slot = 0; slot < replies_.size(); ++slot) {
      Reply& reply = replies_[slot];
      if (reply.position < 0 || random_.below(12) == 0) begin(reply);
      if (random_.below(6) == 0) continue;
      const bool prompt = reply.left >= 0;
      const int32_t count = prompt ? 1 + random_.below(7) : 1;
      const int32_t first =
          batch.add(int32_t(slot), reply.position, count, prompt ? reply.flags : reply.flags | kDecode);
      for (int32_t t = first; prompt && t < first + count; ++t)
        batch.ids[size_t(t)] = random_.below(vocabulary_);
      reply.position += count;
      if (prompt && reply.left-- > 0) continue;
      Sampling s = reply.sampling;
      if (prompt) s.flags |= kStart;
      s.stop_first = 0, s.stop_count = 2;
      s.think_end_first = 2, s.think_end_count = 2;
      s.forced_first = 4, s.forced_count = 3;
      batch.sample_last(s);
    }
    return batch;
  }

  /// Few tokens stand out, so that stops, ends of thinking and repetitions happen.
  std::vector<float> next_logits(size_t rows) {
    std::vector<float> logits = random_.normals(rows * size_t(vocabulary_));
    for (size_t row = 0; row < rows; ++row) {
      for (int i = 0; i < 4; ++i)
        logits[row * size_t(vocabulary_) + size_t(random_.below(25) % vocabulary_)] += 4;
    }
    return logits;
  }

  int32_t vocabulary_;
  bool greedy_;
  Random random_;
  Sampler cpu_;
  std::vector<Reply> replies_;
  uint32_t seen_flags_ = 0;
};

void check_server(int32_t vocabulary, bool greedy) {
  Server server(vocabulary, 5, greedy, uint64_t(vocabulary));
  CudaSampler gpu(server.cpu(), 7);
  const int steps = on_gpu() ? 200 : vocabulary > 1000 ? 12 : 50;
  for (int step = 0; step < steps; ++step) server.step(gpu);
  if (vocabulary < 1000) CHECK_EQ(server.seen_flags(), uint32_t(kSampled | kStopped | kForced));
}

}  // namespace

TEST(cuda_sample_state_greedy_50) { check_server(50, true); }
TEST(cuda_sample_state_greedy_700) { check_server(700, true); }
TEST(cuda_sample_state_greedy_5003) { check_server(5003, true); }
TEST(cuda_sample_state_50) { check_server(50, false); }
TEST(cuda_sample_state_700) { check_server(700, false); }
TEST(cuda_sample_state_5003) { check_server(5003, false); }

TEST(cuda_sample_prompt_chunks) {
  // More sequences than rows, and steps that sample nothing.
  constexpr int32_t kVocabulary = 4500;
  Sampler cpu(kVocabulary, 6);
  CudaSampler gpu(cpu, 2);
  Random random(1);
  for (int32_t chunk = 0; chunk < 3; ++chunk) {
    Batch batch;
    for (int32_t slot = 0; slot < 5; ++slot) {
      const int32_t first = batch.add(slot, chunk * 600, 600, slot == 3 ? 0 : uint32_t{kCount});
      for (int32_t t = first; t < first + 600; ++t) batch.ids[size_t(t)] = random.below(kVocabulary);
    }
    CHECK(gpu.run(batch, {}).empty());
    cpu.run(batch, {});
    CHECK(gpu.has_state_of(cpu));
  }
}

TEST(cuda_sample_marks_its_prompt_first) {
  // The penalties of the first token count the tokens of the chunk that it follows.
  for (const int32_t vocabulary : {40, 6000}) {
    Sampler cpu(vocabulary, 1);
    CudaSampler gpu(cpu, 1);
    Sampling s = plain_sampling();
    s.temperature = 0;
    s.repetition = 4;
    s.flags = kStart;
    Batch batch;
    batch.add(0, 0, 2, kCount);
    batch.ids = {vocabulary - 1, 3};
    batch.sample_last(s);
    std::vector<float> logits(size_t(vocabulary), 0.0f);
    logits[size_t(vocabulary) - 1] = 10;
    logits[3] = 9;
    logits[17] = 5;
    const Result result = gpu.run(batch, logits)[0];
    CHECK_EQ(result.token, 17);
    check_same_result(result, cpu.run(batch, logits)[0]);
    CHECK(gpu.has_state_of(cpu));
  }
}

TEST(cuda_sample_replays_in_a_graph) {
  // The counters are ready for the next step, whatever the step before did.
  constexpr int32_t kVocabulary = 9000, kRows = 3;
  Random random(4);
  Batch batch;
  for (int32_t row = 0; row < kRows; ++row) {
    batch.add(row, 10 + row, 1, kDecode);
    Sampling s = plain_sampling();
    if (row == 0) s.temperature = 0;
    if (row == 2) s.logprobs = 2;
    batch.sample_last(s);
  }
  const std::vector<float> logits = random.normals(size_t(kRows) * kVocabulary, 2);
  Sampler cpu(kVocabulary, kRows);
  for (int32_t row = 0; row < kRows; ++row) cpu.slots[size_t(row)].active = 1;
  const DeviceArray<Slot> slots(cpu.slots);
  const DeviceArray<float> device_logits(logits);
  const DeviceArray<Result> results(kRows);
  const DeviceStep step(batch.step());
  const SampleScratch scratch(kVocabulary, kRows);
  SampleArgs args{};
  args.step = step.data();
  args.slots = slots.data();
  args.vocabulary = kVocabulary;
  args.logits = device_logits.data();
  args.results = results.data();
  graph_microseconds(3, 3, [&](int) {
    check_cuda(sample_cuda(args, kRows, scratch.workspace.data(), scratch.counters.data(), cuda_target()),
               "sample_cuda");
  });
  const std::vector<Result> expected = cpu.run(batch, logits), got = results.read();
  for (size_t row = 0; row < got.size(); ++row) check_same_result(got[row], expected[row]);
}

}  // namespace nibblet::test
