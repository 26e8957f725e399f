#include "native/runtime/cuda/execution.h"
#include "native/runtime/cuda/staging.h"
#include "test/cuda/loaded_weight.h"
#ifdef NIBBLET_EMULATED_CUDA
#include "test/emulator/control.h"
#endif

using namespace nibblet;
using namespace nibblet::test;

TEST(cuda_compact_weight_after_loading) {
  for (const auto& [out, in] : {std::pair(100, 500), std::pair(33, 2688), std::pair(1, 4096)}) {
    // Opened before, so that it is the one that the weight is on.
    const auto device = Device::open("cuda:0");
    const int64_t before = device->allocated_bytes();
    Loaded loaded(normal_rows(out, in));
    const size_t plain = loaded.weight->buffer()->bytes();
    loaded.load();
    loaded.compact();
    CHECK(!sync(*loaded.stream).error);
    CHECK(loaded.is_compact());
    CHECK(loaded.is_whole());
    const WeightView view = loaded.weight->bind();
    CHECK(view.layout == Layout::fragments);
    CHECK_EQ(view.matrix_bytes % 64, size_t(0));
    CHECK(loaded.weight->buffer()->bytes() * 6 < plain * 5 + size_t(out) * 6);
    CHECK(loaded.weight->exceptions() > 0 || out == 1);
    CHECK(loaded.weight->buffer()->bytes() < plain);
    // What the stream stages in is the stream's; the plain matrix is gone.
    loaded.stream.reset();
    CHECK_EQ(device->allocated_bytes(), before + int64_t(loaded.weight->buffer()->bytes() + 511) / 512 * 512);
  }
}

TEST(cuda_compact_weight_that_stays_plain) {
  RandomWeight scattered = normal_rows(64, 1024);
  std::mt19937 random(3);
  for (size_t i = 0; i < scattered.elements.size(); i++) scattered.elements[i] = uint8_t(random());
  RandomWeight one_row = normal_rows(300, 1024);
  for (int32_t k = 0; k < 65; k++) element(one_row, 7, 3 * k) = uint16_t(0x7f80 | k);
  for (RandomWeight* rows : {&scattered, &one_row}) {
    Loaded loaded(*rows);
    check_stays_plain(loaded);
  }
  // 64 in a row are as many as there may be, those of the normal distribution included.
  for (int32_t k = 0; k < 1024; k++) element(one_row, 7, k) = uint16_t(k < 64 ? 0x7f80 | k : 0x3f80);
  Loaded most(one_row);
  most.load();
  most.compact();
  CHECK(!sync(*most.stream).error);
  CHECK(most.is_compact());
  // So few inputs that the rows' own bytes cost more than is saved.
  Loaded narrow(normal_rows(64, 32));
  narrow.load();
  narrow.compact();
  CHECK(!sync(*narrow.stream).error);
  CHECK(!narrow.is_compact());
  CHECK(narrow.is_whole());
}

TEST(cuda_compact_weight_beyond_what_a_record_and_a_piece_hold) {
  // An exception names its input in 16 bits; the records of all rows lie in one staged piece.
  const std::pair<int32_t, int32_t> kShapes[] = {
      {1, kCompactMostInputs + 32},
      {int32_t(CudaStaging::kPieceBytes / sizeof(CompactRow)), 16},
  };
  for (const auto& [out, in] : kShapes) {
    Loaded loaded(normal_rows(out, in));
    loaded.load();
    loaded.compact();
    CHECK(!sync(*loaded.stream).error);
    CHECK(!loaded.is_compact());
    CHECK(loaded.is_whole());
    CHECK(loaded.weight->bind().format == Format::bf16);
  }
  Loaded most(normal_rows(1, kCompactMostInputs));
  most.load();
  most.compact();
  CHECK(!sync(*most.stream).error);
  CHECK(most.is_compact());
  CHECK(most.is_whole());
}

TEST(cuda_compact_weight_cancelled_after_the_survey) {
  for (const bool cancel : {true, false}) {
    Loaded loaded(normal_rows(70, 700));
    loaded.load();
    CHECK(!sync(*loaded.stream).error);
    const auto device = std::static_pointer_cast<CudaDevice>(loaded.device);
    CudaStaging staging(device, cuda_target().stream);
    const std::atomic<bool> cancelled{cancel};
    const Execution host{nullptr, 1, &cancelled, cuda_target().stream};
    compact_weight(loaded.weight)->enqueue({cuda_target(), nullptr, &staging, host, device});
    CHECK_EQ(loaded.is_compact(), !cancel);
    CHECK(loaded.is_whole());
    loaded.weight->bind();
  }
}

#ifdef NIBBLET_EMULATED_CUDA
TEST(cuda_compact_weight_without_memory) {
  // First there is none for a piece of the stream's to work in, then none for the compact matrix.
  for (int number = 0; number < 3; number++) {
    Loaded loaded(normal_rows(70, 700));
    loaded.load();
    CHECK(!sync(*loaded.stream).error);
    // Another stream, which has no staged memory yet.
    const auto stream = std::make_shared<Stream>(loaded.device, 1);
    {
      const emulated::FailingCall failing(cudaErrorMemoryAllocation, number, "cudaMalloc");
      stream->enqueue(compact_weight(loaded.weight));
      CHECK(!sync(*stream).error);
      CHECK_EQ(failing.failed().empty(), number == 2);
    }
    stream->close();
    CHECK_EQ(loaded.is_compact(), number == 2);
    CHECK(loaded.is_whole());
  }
}
#endif
