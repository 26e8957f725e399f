#include "kernels/linear/matmul.h"
#include "test/kernels/inputs.h"
#include "test/runtime/loaded_weight.h"

using namespace nibblet;
using namespace nibblet::test;

namespace {

struct OnCpu : LoadedOn {
  explicit OnCpu(RandomWeight source) : LoadedOn("cpu", Layout::panels, std::move(source)) {}
};

}  // namespace

TEST(compact_weight_after_loading) {
  for_each_cpu_variant([] {
    for (const auto& [out, in] : {std::pair(100, 500), std::pair(33, 2688), std::pair(1, 4096)}) {
      OnCpu loaded(normal_rows(out, in));
      const size_t plain = loaded.weight->buffer()->bytes();
      loaded.load();
      loaded.compact();
      CHECK(!sync(*loaded.stream).error);
      CHECK_EQ(loaded.is_compact(), reads_compact_panels());
      CHECK(loaded.is_whole());
      const WeightView view = loaded.weight->bind();
      CHECK(view.layout == Layout::panels);
      CHECK_EQ(view.matrix_bytes % 64, size_t(0));
      if (!loaded.is_compact()) continue;
      CHECK(loaded.weight->buffer()->bytes() * 6 < plain * 5 + size_t(out) * 6);
      CHECK(loaded.weight->exceptions() > 0 || out == 1);
    }
  });
}

TEST(compact_weight_that_stays_plain) {
  RandomWeight scattered = normal_rows(64, 1024);
  std::mt19937 random(3);
  for (size_t i = 0; i < scattered.elements.size(); i++) scattered.elements[i] = uint8_t(random());
  // A list entry names its input in 16 bits; and so few inputs that a panel's record costs more than is saved.
  for (const RandomWeight& rows : {scattered, normal_rows(1, kCompactMostInputs + 16), normal_rows(16, 1)}) {
    OnCpu loaded(rows);
    loaded.load();
    loaded.compact();
    CHECK(!sync(*loaded.stream).error);
    CHECK(!loaded.is_compact());
    CHECK(loaded.is_whole());
    CHECK_EQ(loaded.weight->exceptions(), uint64_t(0));
    CHECK(loaded.weight->bind().format == Format::bf16);
  }
  OnCpu most(normal_rows(1, kCompactMostInputs));
  most.load();
  most.compact();
  CHECK(!sync(*most.stream).error);
  CHECK_EQ(most.is_compact(), reads_compact_panels());
  CHECK(most.is_whole());
}

TEST(compact_weight_cancelled) {
  for (const bool cancel : {true, false}) {
    OnCpu loaded(normal_rows(70, 700));
    loaded.load();
    CHECK(!sync(*loaded.stream).error);
    const std::atomic<bool> cancelled{cancel};
    compact_weight(loaded.weight)->run({nullptr, 2, &cancelled, &loaded});
    CHECK_EQ(loaded.is_compact(), !cancel && reads_compact_panels());
    CHECK(loaded.is_whole());
    loaded.weight->bind();
  }
}

TEST(compact_weight_refuses) {
  OnCpu loaded(normal_rows(40, 512));
  loaded.load();
  CHECK(!sync(*loaded.stream).error);
  {
    const auto command = compact_weight(loaded.weight);
    CHECK_THROWS("INVALID_OPTION", loaded.weight->bind(), "stream.sync()");
    CHECK_THROWS("INVALID_OPTION", load_weight(loaded.weight, loaded.part(0, 8)), "complete");
    CHECK_THROWS("INVALID_OPTION", compact_weight(loaded.weight), "already");
  }
  // The command went without having run.
  CHECK(loaded.is_whole());
  loaded.weight->bind();
  CHECK_THROWS("INVALID_OPTION", compact_weight(loaded.weight), "an op uses");
  const auto other = [&](Format format, Layout layout, int32_t matrices) {
    return std::make_shared<Weight>(loaded.device, format, layout, matrices, 16, 64);
  };
  CHECK_THROWS("INVALID_OPTION", compact_weight(other(Format::e4m3, Layout::panels, 1)), "single bf16");
  CHECK_THROWS("INVALID_OPTION", compact_weight(other(Format::bf16, Layout::panels, 2)), "single bf16");
  CHECK_THROWS("INVALID_OPTION", compact_weight(other(Format::bf16, Layout::rows, 1)), "single bf16");
  CHECK_THROWS("INVALID_OPTION", other(Format::compact_bf16, Layout::panels, 1), "made of a bf16");
}

TEST(compact_weight_waits_for_parts_of_its_own_stream_only) {
  OnCpu loaded(normal_rows(40, 512));
  const auto other = std::make_shared<Stream>(loaded.device, 1);
  {
    // Made, and on no stream yet.
    const std::shared_ptr<Command> first = load_weight(loaded.weight, loaded.part(0, 20));
    const std::shared_ptr<Command> second = load_weight(loaded.weight, loaded.part(20, 20));
    other->enqueue(compact_weight(loaded.weight));
    CHECK_ERROR("INVALID_OPTION", sync(*other).error, "sync()", "part");
    other->close();
    CHECK(!loaded.is_compact());
    loaded.stream->enqueue(first);
    loaded.stream->enqueue(second);
    loaded.compact();
    CHECK(!sync(*loaded.stream).error);
    CHECK_EQ(loaded.is_compact(), reads_compact_panels());
    CHECK(loaded.is_whole());
    if (!loaded.is_compact()) return;
    // A command that comes again finds the weight complete.
    loaded.stream->enqueue(first);
    CHECK_ERROR("INVALID_OPTION", sync(*loaded.stream).error, "compact already");
    CHECK(loaded.is_whole());
  }
  loaded.weight->bind();
}

TEST(compact_weight_survives_a_closed_stream) {
  for (int round = 0; round < 10; round++) {
    OnCpu loaded(normal_rows(200, 700));
    loaded.load();
    CHECK(!sync(*loaded.stream).error);
    loaded.compact();
    if (round % 2) std::this_thread::sleep_for(std::chrono::microseconds(100 * round));
    loaded.stream->close();
    // One or the other, and whole.
    CHECK(loaded.is_whole());
    CHECK((loaded.weight->exceptions() > 0) == loaded.is_compact());
    loaded.weight->bind();
  }
}
