#include "test/cuda/loaded_weight.h"
#ifdef NIBBLET_EMULATED_CUDA
#include "test/emulator/control.h"
#endif

using namespace nibblet;
using namespace nibblet::test;

#ifdef NIBBLET_EMULATED_CUDA
TEST(cuda_compact_weight_survives_any_failing_call) {
  int number = 0;
  for (bool failed = true; failed && number < 100; number++) {
    Loaded loaded(normal_rows(70, 700));
    loaded.load();
    CHECK(!sync(*loaded.stream).error);
    {
      const emulated::FailingCall failing(cudaErrorUnknown, number);
      loaded.compact();
      const auto error = sync(*loaded.stream).error;
      failed = !failing.failed().empty();
      CHECK(failed || !error);
    }
    loaded.stream->close();
    CHECK(loaded.is_whole());
    loaded.weight->bind();
  }
  CHECK(number > 8 && number < 100);
}
#endif

TEST(cuda_compact_weight_refuses) {
  Loaded loaded(normal_rows(40, 512));
  loaded.load();
  CHECK(!sync(*loaded.stream).error);
  check_refuses_while_compacting(loaded);
  loaded.compact();
  CHECK(!sync(*loaded.stream).error);
  CHECK(loaded.is_compact());
  CHECK_THROWS("INVALID_OPTION", compact_weight(loaded.weight), "only a single bf16 matrix");
  CHECK_THROWS("INVALID_OPTION", load_weight(loaded.weight, loaded.part(0, 8)), "complete");
  loaded.weight->bind();

  Loaded used(normal_rows(40, 512));
  used.weight->bind();
  CHECK_THROWS("INVALID_OPTION", compact_weight(used.weight), "an op uses");
  check_refuses_other_weights(loaded.device, Layout::fragments);
}

TEST(cuda_compact_weight_survives_a_closed_stream) {
  for (int round = 0; round < 10; round++) {
    Loaded loaded(normal_rows(70, 700));
    loaded.load();
    CHECK(!sync(*loaded.stream).error);
    loaded.compact();
    if (round % 2) std::this_thread::sleep_for(std::chrono::milliseconds(round));
    loaded.stream->close();
    // One or the other, and whole.
    CHECK(loaded.is_whole());
    CHECK((loaded.weight->exceptions() > 0) == loaded.is_compact());
    loaded.weight->bind();
  }
}

TEST(cuda_compact_weight_survives_a_failed_stream) {
  class Broken : public Command {
   public:
    const char* name() const override { return "broken"; }
    void run(const Execution&) override {}
    void enqueue(const CudaExecution&) override { throw Error("OP_FAILED", "broken"); }
  };
  Loaded loaded(normal_rows(70, 700));
  loaded.load();
  CHECK(!sync(*loaded.stream).error);
  loaded.stream->enqueue(std::make_shared<Broken>());
  try {
    loaded.compact();
  } catch (const Error&) {
  }
  CHECK_ERROR("OP_FAILED", sync(*loaded.stream).error, "broken");
  loaded.stream->close();
  CHECK(!loaded.is_compact());
  CHECK(loaded.is_whole());
  loaded.weight->bind();
}

TEST(cuda_compact_weight_waits_for_parts_of_its_own_stream_only) {
  Loaded loaded(normal_rows(40, 512));
  const auto other = std::make_shared<Stream>(loaded.device, 1);
  const auto refused = [&](bool loaded_by_now) {
    const auto stream = std::make_shared<Stream>(loaded.device, 1);
    stream->enqueue(compact_weight(loaded.weight));
    CHECK_ERROR("INVALID_OPTION", sync(*stream).error, "sync()", "part");
    stream->close();
    CHECK(!loaded.is_compact());
    CHECK(!loaded_by_now || loaded.is_whole());
  };
  {
    // Made, and on no stream yet.
    const std::shared_ptr<Command> first = load_weight(loaded.weight, loaded.part(0, 20));
    const std::shared_ptr<Command> second = load_weight(loaded.weight, loaded.part(20, 20));
    refused(false);
    loaded.stream->enqueue(first);
    loaded.stream->enqueue(second);
    CHECK(!sync(*loaded.stream).error);
    // Given to a stream, which perhaps still works on them.
    refused(true);
    // The same stream's are done before.
    loaded.compact();
    CHECK(!sync(*loaded.stream).error);
    CHECK(loaded.is_compact());
    CHECK(loaded.is_whole());
    // A command that comes again finds the weight complete.
    other->enqueue(first);
    CHECK_ERROR("INVALID_OPTION", sync(*other).error, "compact already");
    other->close();
    CHECK(loaded.is_whole());
  }
  loaded.weight->bind();

  // Parts that are gone, done or not, hold nothing up, on whatever stream.
  Loaded dropped(normal_rows(40, 512));
  load_weight(dropped.weight, dropped.part(0, 8));
  CHECK_THROWS("INVALID_OPTION", load_weight(dropped.weight, dropped.part(39, 2)), "inside its weight");
  dropped.load();
  CHECK(!sync(*dropped.stream).error);
  const auto stream = std::make_shared<Stream>(dropped.device, 1);
  stream->enqueue(compact_weight(dropped.weight));
  CHECK(!sync(*stream).error);
  stream->close();
  CHECK(dropped.is_compact());
  CHECK(dropped.is_whole());
}
