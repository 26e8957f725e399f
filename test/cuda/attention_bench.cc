#include <memory>

#include "test/cuda/attention_device.h"

namespace nibblet::test {

/// Decode at several contexts and batches, then prefill. Caches rotate over more than the second-level cache holds.
TEST(cuda_bench_attention) {
  if (!benchmarks_asked_for()) return;
  const CudaTarget& target = cuda_target();
  struct Case {
    int32_t sequences, context, tokens;
  };
  std::vector<Case> cases;
  for (const int32_t batch : {1, 8, 64}) {
    for (const int32_t context : {64, 1024, 4096, 32768}) {
      if (batch == 1 || context < 32768) cases.push_back({batch, context, 1});
    }
  }
  cases.push_back({1, 512, 512});
  for (const DType type : {DType::e4m3, DType::bf16}) {
    AttentionLayerShape shape = kNanoAttention;
    shape.cache_type = type;
    const size_t page_bytes = size_t(2) * 2 * kPageTokens * 128 * dtype_bytes(type);
    for (const Case& c : cases) {
      const int32_t pages = c.context / kPageTokens;
      const size_t copy_pages = size_t(pages) * size_t(c.sequences);
      const int copies = int(std::clamp<size_t>((size_t{128} << 20) / (copy_pages * page_bytes), 4, 32));
      const int32_t tokens = c.sequences * c.tokens;
      DeviceArray<uint8_t> cache(copy_pages * size_t(copies) * page_bytes, 0);
      const Elements qkv = random_attention_rows(shape, tokens, 3);
      AttentionLayer host(shape, 1);
      std::vector<std::unique_ptr<DeviceAttention>> layers;
      for (int i = 0; i < copies; ++i) {
        Batch batch(pages);
        for (int32_t s = 0; s < c.sequences; ++s) {
          std::vector<int32_t> own(static_cast<size_t>(pages));
          for (int32_t p = 0; p < pages; ++p) own[size_t(p)] = (i * c.sequences + s) * pages + pages - 1 - p;
          batch.add(s, c.context - c.tokens, c.tokens, 0, own);
        }
        host.run(
            [&](const AttentionArgs& args, const AttentionSizes& sizes) {
              layers.push_back(std::make_unique<DeviceAttention>(args, sizes));
            },
            batch, qkv);
        layers.back()->args.cache = cache.data();
      }
      const CudaScratch scratch = attention_cuda_scratch(layers[0]->args, tokens, target);
      DeviceArray<uint8_t> workspace(scratch.workspace);
      DeviceArray<uint8_t> counters(scratch.counters, 0);
      const double us = graph_microseconds(copies, 10, [&](int i) {
        check_cuda(attention_cuda(layers[size_t(i)]->args, tokens, workspace.data(), counters.data(), target),
                   "attention");
      });
      const double bytes = double(copy_pages * page_bytes) + 2.0 * tokens * (shape.row() + shape.width());
      std::printf("    attention %s batch %2d context %5d tokens %4d %8.2f us %7.1f GB/s %5.1f %%\n",
                  type == DType::e4m3 ? "e4m3" : "bf16", c.sequences, c.context, c.tokens, us,
                  bytes / us / 1e3, bytes / us / 1e3 / 30.80);
    }
  }
}

}  // namespace nibblet::test
