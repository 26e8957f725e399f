#include <memory>

#include "kernels/attention/cuda.h"
#include "test/cuda/device.h"
#include "test/kernels/attention_layer.h"

namespace nibblet::test {
namespace {

const AttentionLayerShape kNano = {32, 2, 128, DType::bf16, DType::e4m3};

/// Those of the tensor cores, then those of the plain kernel.
std::vector<AttentionLayerShape> shapes() {
  std::vector<AttentionLayerShape> all = {
      {4, 1, 128, DType::bf16, DType::e4m3},  // the bundled model
      {4, 2, 128, DType::bf16, DType::bf16},
      {19, 1, 128, DType::bf16, DType::e4m3},  // two tiles of query rows
      {4, 2, 8, DType::bf16, DType::e4m3},
      {6, 3, 20, DType::f32, DType::f32},
      {5, 5, 7, DType::f32, DType::e4m3},
      {1, 1, 1, DType::bf16, DType::bf16},
      {9, 1, 33, DType::bf16, DType::f32},
      {2, 1, 128, DType::f32, DType::bf16},
  };
  if (on_gpu()) {
    all.push_back(kNano);
    all.push_back({32, 2, 128, DType::bf16, DType::bf16});
    all.push_back({2, 1, 256, DType::bf16, DType::e4m3});
  }
  return all;
}

/// For tests of many steps, which the emulator runs slowly.
std::vector<AttentionLayerShape> few_shapes() {
  if (on_gpu()) return shapes();
  return {{3, 1, 128, DType::bf16, DType::e4m3},
          {2, 1, 128, DType::bf16, DType::bf16},
          {4, 2, 9, DType::f32, DType::f32}};
}

/// A layer's operands on the device.
struct DeviceLayer {
  AttentionArgs args;
  DeviceArray<uint8_t> qkv, cache, y;
  DeviceArray<Slot> slots;
  DeviceStep step;

  DeviceLayer(const AttentionArgs& host, const AttentionSizes& sizes)
      : args(host),
        qkv(static_cast<const uint8_t*>(host.qkv),
            size_t(host.step->tokens) * size_t(host.heads + 2 * host.kv_heads) * element(host)),
        cache(static_cast<const uint8_t*>(host.cache), size_t(sizes.pages) * 2 * size_t(host.kv_heads) *
                                                           kPageTokens * size_t(host.head_dim) *
                                                           dtype_bytes(host.cache_type)),
        y(size_t(host.step->tokens) * size_t(host.heads) * element(host)),
        slots(host.slots, size_t(sizes.slots)),
        step(*host.step) {
    args.step = step.data();
    args.slots = host.slots ? slots.data() : nullptr;
    args.qkv = qkv.data();
    args.cache = cache.data();
    args.y = y.data();
  }
  static size_t element(const AttentionArgs& a) { return size_t(a.head_dim) * dtype_bytes(a.type); }
};

struct Machine {
  int32_t capacity = 0;         ///< most tokens of a step; less than there are: as many
  int32_t multiprocessors = 0;  ///< that contexts are cut for; 0: those of the GPU
};

AttentionRun run_on_gpu(Machine machine = {}) {
  return [=](const AttentionArgs& host, const AttentionSizes& sizes) {
    CudaTarget target = cuda_target();
    if (machine.multiprocessors > 0) target.multiprocessors = machine.multiprocessors;
    DeviceLayer layer(host, sizes);
    const int32_t capacity = std::max(machine.capacity, host.step->tokens);
    const CudaScratch scratch = attention_cuda_scratch(layer.args, capacity, target);
    DeviceArray<uint8_t> workspace(scratch.workspace);
    DeviceArray<uint8_t> counters(scratch.counters, 0);
    check_cuda(attention_cuda(layer.args, capacity, workspace.data(), counters.data(), target), "attention");

    const std::vector<uint8_t> y = layer.y.read();
    const std::vector<uint8_t> cache = layer.cache.read();
    std::copy(y.begin(), y.end(), static_cast<uint8_t*>(host.y));
    std::copy(cache.begin(), cache.end(), static_cast<uint8_t*>(host.cache));
    CHECK(layer.y.guards_intact() && layer.cache.guards_intact());
    CHECK(workspace.guards_intact() && counters.guards_intact());
    for (const uint8_t byte : counters.read()) CHECK_EQ(int(byte), 0);
  };
}

/// One way to cut contexts, whatever the step: what a token sees decides its bits.
AttentionRun run_uncut(int32_t capacity = 0) { return run_on_gpu({capacity, 1}); }

/// A sequence: the rows of its tokens from position 0 on, and its pages.
struct Context {
  Elements rows;
  std::vector<int32_t> pages;

  Context(const AttentionLayerShape& shape, int32_t tokens, uint64_t seed, std::vector<int32_t> its_pages)
      : rows(random_attention_rows(shape, tokens, seed)), pages(std::move(its_pages)) {}

  Elements rows_of(const AttentionLayerShape& shape, int32_t position, int32_t count) const {
    return rows.part(size_t(position) * size_t(shape.row()), size_t(count) * size_t(shape.row()));
  }
  /// Puts the first `count` positions into the cache.
  void cache(AttentionLayer& layer, int32_t count) const {
    const AttentionLayerShape& s = layer.shape;
    for (int32_t j = 0; j < count; ++j) {
      for (int32_t part = 0; part < 2; ++part) {
        const float scale = s.cache_type != DType::e4m3 ? 1 : part == 0 ? layer.k_scale : layer.v_scale;
        for (int32_t head = 0; head < s.kv_heads; ++head) {
          for (int32_t i = 0; i < s.head_dim; ++i) {
            const size_t from = size_t(j) * size_t(s.row()) +
                                size_t(s.heads + part * s.kv_heads + head) * size_t(s.head_dim) + size_t(i);
            write_element(layer.cache.data(), s.cache_type, place(s, j, part, head, i), rows[from] / scale);
          }
        }
      }
    }
  }
  size_t place(const AttentionLayerShape& s, int32_t position, int32_t part, int32_t head, int32_t i) const {
    const int32_t page = pages[size_t(position / kPageTokens)];
    return (((size_t(page) * 2 + size_t(part)) * size_t(s.kv_heads) + size_t(head)) * kPageTokens +
            size_t(position % kPageTokens)) *
               size_t(s.head_dim) +
           size_t(i);
  }
};

std::vector<int32_t> pages_for(int32_t tokens, int32_t first = 0) {
  std::vector<int32_t> pages;
  for (int32_t page = (tokens - 1) / kPageTokens; page >= 0; --page) pages.push_back(first + page);
  return pages;
}

void check_row(const AttentionLayer& layer, const Context& context, int32_t position, const Elements& y,
               int32_t row) {
  const std::vector<Bounded> expected = attention_oracle(layer, context.rows, position);
  for (int32_t i = 0; i < layer.shape.width(); ++i) {
    CHECK_NEAR(y[size_t(row) * size_t(layer.shape.width()) + size_t(i)], expected[size_t(i)].value,
               expected[size_t(i)].error);
  }
}

/// Whether exactly position `position` was written, and with what the oracle says.
void check_appended(const AttentionLayer& before, const AttentionLayer& after, const Context& context,
                    int32_t position) {
  AttentionLayer expected = before;
  context.cache(expected, position + 1);
  CHECK(after.cache == expected.cache);
}

}  // namespace

TEST(cuda_attention_oracle) { check_attention_oracle(run_on_gpu(), shapes()); }
TEST(cuda_attention_pieces) { check_attention_pieces(run_uncut(), few_shapes()); }
TEST(cuda_attention_batch) {
  check_attention_batch(run_uncut(80), {run_uncut(100), run_on_gpu({80, 2})}, few_shapes());
}
TEST(cuda_attention_extremes) { check_attention_extremes(run_on_gpu()); }
TEST(cuda_attention_nan) {
  check_attention_nan(run_on_gpu(), shapes());
  check_attention_nan(run_on_gpu({100, 0}), shapes());
}

/// One token behind contexts around the ends of pages, of the parts they are cut into and of groups of parts.
TEST(cuda_attention_decode) {
  for (const AttentionLayerShape& shape : {AttentionLayerShape{4, 1, 128, DType::bf16, DType::e4m3},
                                           {4, 2, 128, DType::bf16, DType::bf16},
                                           {18, 1, 128, DType::bf16, DType::e4m3}}) {
    const int32_t tokens = shape.heads == 4 ? 1700 : 400;
    const Context context(shape, tokens, 3, pages_for(tokens));
    for (const int32_t position : {0, 1, 62, 63, 64, 65, 127, 128, 129, 256, 383, 399, 900, 1665, 1699}) {
      if (position >= tokens) continue;
      AttentionLayer layer(shape, int32_t(context.pages.size()));
      context.cache(layer, position);
      const AttentionLayer before = layer;
      Batch batch(30);
      batch.add(0, position, 1, 0, context.pages);
      const Elements query = context.rows_of(shape, position, 1);
      const Elements y = layer.run(run_on_gpu({1, 132}), batch, query);
      check_row(layer, context, position, y, 0);
      check_appended(before, layer, context, position);
      for (const int32_t multiprocessors : {1, 9, 132}) {
        AttentionLayer again = before;
        const Elements other = again.run(run_on_gpu({1, multiprocessors}), batch, query);
        CHECK(multiprocessors != 132 || other == y);
        check_row(layer, context, position, other, 0);
        CHECK(again.cache == layer.cache);
      }
    }
  }
}

/// Contexts with more parts than one block merges: they are merged in groups first.
TEST(cuda_attention_decode_long) {
  for (const DType type : {DType::e4m3, DType::bf16}) {
    const AttentionLayerShape shape = {2, 1, 128, DType::bf16, type};
    const int32_t position = 8450;
    const Context context(shape, position + 1, 3, pages_for(position + 1));
    AttentionLayer layer(shape, int32_t(context.pages.size()));
    context.cache(layer, position);
    const AttentionLayer before = layer;
    Batch batch(int32_t(context.pages.size()));
    batch.add(0, position, 1, 0, context.pages);
    const Elements query = context.rows_of(shape, position, 1);
    for (const int32_t multiprocessors : {20, 132}) {
      layer = before;
      const Elements y = layer.run(run_on_gpu({1, multiprocessors}), batch, query);
      check_row(layer, context, position, y, 0);
      check_appended(before, layer, context, position);
    }
  }
}

/// Decode rows and chunks of several sequences in one launch.
TEST(cuda_attention_ragged) {
  for (const AttentionLayerShape& shape : {AttentionLayerShape{4, 1, 128, DType::bf16, DType::e4m3},
                                           {6, 3, 128, DType::bf16, DType::bf16},
                                           {6, 3, 16, DType::bf16, DType::e4m3}}) {
    struct Row {
      int32_t slot, position, count;
      uint32_t flags;
    };
    const std::vector<Row> rows = {{3, 200, 1, kDecode}, {5, 64, 1, kDecode}, {0, 63, 1, kDecode},
                                   {1, 130, 1, kDecode}, {2, 0, 9, 0},        {4, 60, 8, 0}};
    std::vector<Slot> slots(6);
    for (const int32_t slot : {0, 1, 3}) slots[size_t(slot)].active = 1;  // 5 is not
    AttentionLayer layer(shape, 40);
    AttentionLayer expected = layer;
    std::vector<Context> contexts;
    Batch batch(5);
    std::vector<float> values;
    for (const Row& row : rows) {
      const int32_t length = row.position + row.count;
      contexts.emplace_back(shape, length, 100 + row.slot, pages_for(length, 5 * row.slot));
      const Context& context = contexts.back();
      context.cache(layer, row.position);
      context.cache(expected, row.slot == 5 ? row.position : length);
      batch.add(row.slot, row.position, row.count, row.flags, context.pages);
      const Elements part = context.rows_of(shape, row.position, row.count);
      for (size_t i = 0; i < part.size(); ++i) values.push_back(part[i]);
    }
    const Elements qkv(shape.type, values);
    const AttentionLayer before = layer;
    for (const Machine& machine : {Machine{0, 132}, {64, 0}, {65, 0}}) {
      layer = before;
      const Elements y = layer.run(run_on_gpu(machine), batch, qkv, slots);
      CHECK(layer.cache == expected.cache);
      for (size_t r = 0; r < rows.size(); ++r) {
        if (rows[r].slot == 5) continue;
        for (int32_t t = 0; t < rows[r].count; ++t) {
          check_row(layer, contexts[r], rows[r].position + t, y, batch.sequences[r].first + t);
        }
      }
    }
  }
}

/// What the cache holds as NaN reaches what sees it: all of it from a key, its own element from a value.
TEST(cuda_attention_cached_nan) {
  const AttentionLayerShape shape = {4, 1, 128, DType::bf16, DType::e4m3};
  const int32_t position = 90;
  const Context context(shape, position + 1, 3, pages_for(position + 1));
  for (const int32_t part : {0, 1}) {
    for (const int32_t element : {0, 1, 2, 3, 77, 127}) {
      AttentionLayer layer(shape, 2);
      context.cache(layer, position);
      static_cast<uint8_t*>(layer.cache.data())[context.place(shape, 33 + element, part, 0, element)] = 0xff;
      Batch batch(2);
      batch.add(0, position, 1, 0, context.pages);
      const Elements y = layer.run(run_on_gpu(), batch, context.rows_of(shape, position, 1));
      if (position < 33 + element) continue;
      for (int32_t i = 0; i < shape.width(); ++i) {
        CHECK_EQ(std::isnan(y[size_t(i)]), part == 0 || i % shape.head_dim == element);
      }
    }
  }
}

TEST(cuda_attention_empty) {
  for (const AttentionLayerShape& shape : {kNano, {6, 3, 20, DType::f32, DType::f32}}) {
    for (const int32_t capacity : {1, 8, 100}) {
      AttentionLayer layer(shape, 1);
      const AttentionLayer before = layer;
      layer.run(run_on_gpu({capacity, 0}), Batch(1), Elements(shape.type, 0));
      CHECK(layer.cache == before.cache);
    }
  }
}

TEST(cuda_attention_refuses) {
  AttentionArgs args = {};
  args.head_dim = 257;
  CHECK(attention_cuda(args, 1, nullptr, nullptr, cuda_target()) == cudaErrorInvalidValue);
}

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
    AttentionLayerShape shape = kNano;
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
      std::vector<std::unique_ptr<DeviceLayer>> layers;
      for (int i = 0; i < copies; ++i) {
        Batch batch(pages);
        for (int32_t s = 0; s < c.sequences; ++s) {
          std::vector<int32_t> own(static_cast<size_t>(pages));
          for (int32_t p = 0; p < pages; ++p) own[size_t(p)] = (i * c.sequences + s) * pages + pages - 1 - p;
          batch.add(s, c.context - c.tokens, c.tokens, 0, own);
        }
        host.run(
            [&](const AttentionArgs& args, const AttentionSizes& sizes) {
              layers.push_back(std::make_unique<DeviceLayer>(args, sizes));
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
