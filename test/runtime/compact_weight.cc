#include <atomic>
#include <chrono>
#include <random>
#include <thread>

#include "kernels/linear/matmul.h"
#include "native/runtime/host_device.h"
#include "test/kernels/inputs.h"
#include "test/runtime/loaded_weight.h"
#include "test/runtime/op_calls.h"

using namespace nibblet;
using namespace nibblet::test;

namespace {

struct OnCpu : LoadedOn {
  explicit OnCpu(RandomWeight source, std::shared_ptr<Device> device = Device::open("cpu"))
      : LoadedOn(std::move(device), Layout::panels, std::move(source)) {}
};

/// A host that refuses its next allocation when told to.
class ShortDevice : public HostDevice {
 public:
  using HostDevice::HostDevice;
  bool refuse = false;

 protected:
  Allocation take(size_t bytes) override {
    if (refuse) throw Error("OUT_OF_MEMORY", "refused");
    return HostDevice::take(bytes);
  }
};

/// So many elements of exponents beyond every window that holds the others.
RandomWeight with_exceptions(int32_t out, int32_t in, int32_t exceptions) {
  RandomWeight rows(Format::bf16, out, in, 1);
  for (int32_t n = 0; n < out; n++) {
    for (int32_t k = 0; k < in; k++) element(rows, n, k) = 0x3f80;
  }
  for (int32_t i = 0; i < exceptions; i++) element(rows, i % out, i / out) = 0x6000;
  return rows;
}

}  // namespace

TEST(compact_weight_after_loading) {
  for_each_cpu_variant([] {
    for (const auto& [out, in] : {std::pair(100, 500), std::pair(33, 2688), std::pair(1, 4096)}) {
      OnCpu loaded(normal_rows(out, in));
      const size_t plain = loaded.weight->buffer()->bytes();
      loaded.load();
      loaded.compact();
      CHECK(!sync(*loaded.stream).error);
      CHECK_EQ(loaded.is_compact(), prefers_compact_panels());
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
    check_stays_plain(loaded);
  }
  // One element in 512 may be stored apart, wherever it is.
  for (const int32_t more : {0, 1}) {
    OnCpu loaded(with_exceptions(64, 1024, 64 * 1024 / 512 + more));
    loaded.load();
    loaded.compact();
    CHECK(!sync(*loaded.stream).error);
    CHECK_EQ(loaded.is_compact(), more == 0 && prefers_compact_panels());
    CHECK(loaded.is_whole());
  }
  OnCpu most(normal_rows(1, kCompactMostInputs));
  most.load();
  most.compact();
  CHECK(!sync(*most.stream).error);
  CHECK_EQ(most.is_compact(), prefers_compact_panels());
  CHECK(most.is_whole());
}

TEST(compact_weight_cut_short_stays_plain) {
  // Large enough for several slices a phase. Whenever the flag comes, the weight is one or the other, and whole.
  OnCpu loaded(normal_rows(4096, 5120));
  loaded.load();
  CHECK(!sync(*loaded.stream).error);
  const auto buffer = loaded.weight->buffer();
  const std::vector<uint8_t> before(buffer->data(), buffer->data() + buffer->bytes());
  int cut = 0;
  for (int round = 0; round < 24 && !loaded.is_compact(); round++) {
    std::atomic<bool> cancelled{round == 0};
    std::thread canceller([&] {
      std::this_thread::sleep_for(std::chrono::microseconds(600 * round));
      cancelled.store(true);
    });
    compact_weight(loaded.weight)->run({nullptr, 2, &cancelled, &loaded});
    canceller.join();
    cut += !loaded.is_compact();
    if (!loaded.is_compact()) CHECK(std::memcmp(buffer->data(), before.data(), before.size()) == 0);
  }
  CHECK(cut > 0);
  const std::atomic<bool> never{false};
  if (!loaded.is_compact()) compact_weight(loaded.weight)->run({nullptr, 2, &never, &loaded});
  CHECK_EQ(loaded.is_compact(), prefers_compact_panels());
  const WeightView view = loaded.weight->bind();
  const CompactPanels expected(loaded.rows);
  CHECK(!loaded.is_compact() || (view.matrix_bytes == expected.view.matrix_bytes &&
                                 std::memcmp(view.data, expected.view.data, view.matrix_bytes) == 0));
}

TEST(compact_weight_without_memory_stays_plain) {
  const auto device = std::make_shared<ShortDevice>("cpu");
  OnCpu loaded(normal_rows(70, 700), device);
  loaded.load();
  CHECK(!sync(*loaded.stream).error);
  const int64_t allocated = device->allocated_bytes();
  device->refuse = true;
  loaded.compact();
  CHECK(!sync(*loaded.stream).error);
  CHECK(!loaded.is_compact());
  CHECK_EQ(device->allocated_bytes(), allocated);
  device->refuse = false;
  CHECK(loaded.is_whole());
  loaded.compact();
  CHECK(!sync(*loaded.stream).error);
  CHECK_EQ(loaded.is_compact(), prefers_compact_panels());
  CHECK(loaded.is_whole());
  // The plain matrix went.
  CHECK(!loaded.is_compact() || device->allocated_bytes() < allocated);
}

TEST(compact_weight_runs_once) {
  OnCpu loaded(normal_rows(40, 512));
  loaded.load();
  const std::shared_ptr<Command> command = compact_weight(loaded.weight);
  loaded.stream->enqueue(command);
  CHECK(!sync(*loaded.stream).error);
  loaded.weight->bind();
  loaded.stream->enqueue(command);
  CHECK_ERROR("INVALID_OPTION", sync(*loaded.stream).error, "once");
  CHECK_EQ(loaded.is_compact(), prefers_compact_panels());
  if (!loaded.is_compact()) return;
  CHECK_THROWS("INVALID_OPTION", compact_weight(loaded.weight), "only a single bf16 matrix");
  CHECK_THROWS("INVALID_OPTION", load_weight(loaded.weight, loaded.part(0, 8)), "complete");
}

TEST(compact_weight_is_not_for_moe) {
  if (!prefers_compact_panels()) return;
  OnCpu loaded(normal_rows(160, 4));
  loaded.load();
  loaded.compact();
  CHECK(!sync(*loaded.stream).error);
  CHECK(loaded.is_compact());
  const auto stream = open_stream();
  OpCall call = good_call("moe", *stream);
  call.operands[6] = loaded.weight;
  CHECK_THROWS("INVALID_OPTION", enqueue_op(call), "moe: ", "`sharedUp`", "compact");
  stream->close();
}

TEST(compact_weight_refuses) {
  OnCpu loaded(normal_rows(40, 512));
  loaded.load();
  CHECK(!sync(*loaded.stream).error);
  check_refuses_while_compacting(loaded);
  loaded.weight->bind();
  CHECK_THROWS("INVALID_OPTION", compact_weight(loaded.weight), "an op uses");
  check_refuses_other_weights(loaded.device, Layout::panels);
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
    CHECK_EQ(loaded.is_compact(), prefers_compact_panels());
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
