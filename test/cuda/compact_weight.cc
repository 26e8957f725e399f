#include "kernels/pack/compact.h"
#include "kernels/pack/pack.h"
#include "native/runtime/load.h"
#include "native/runtime/mapped_file.h"
#include "test/cuda/compact.h"
#include "test/runtime/fixture.h"
#ifdef NIBBLET_EMULATED_CUDA
#include "test/emulator/control.h"
#endif

using namespace nibblet;
using namespace nibblet::test;

namespace {

RandomWeight normal_rows(int32_t out, int32_t in) {
  RandomWeight rows(Format::bf16, out, in, 1);
  make_normal(rows, 2);
  return rows;
}

uint16_t& element(RandomWeight& rows, int32_t n, int32_t k) {
  return reinterpret_cast<uint16_t*>(rows.elements.data())[size_t(n) * size_t(rows.in) + size_t(k)];
}

/// A weight on the GPU and the file that its rows come from.
struct Loaded {
  std::shared_ptr<Device> device = Device::open("cuda:0");
  std::shared_ptr<Stream> stream = std::make_shared<Stream>(device, 1);
  RandomWeight rows;
  TemporaryFile file;
  std::shared_ptr<Weight> weight;

  explicit Loaded(RandomWeight source)
      : rows(std::move(source)),
        file(bytes_of(rows.elements)),
        weight(std::make_shared<Weight>(device, Format::bf16, Layout::fragments, 1, rows.out, rows.in)) {}
  ~Loaded() { stream->close(); }

  WeightPart part(int32_t first, int32_t count) const {
    WeightPart part{};
    part.first_row = first;
    part.rows = count;
    part.elements = {std::make_shared<MappedFile>(file.path()), size_t(first) * size_t(rows.in) * 2,
                     DType::bf16, "layer.weight"};
    part.scale = float(first + 1);
    return part;
  }
  /// In two parts, which end inside a tile.
  void load() {
    const int32_t split = rows.out / 2;
    if (split > 0) stream->enqueue(load_weight(weight, part(0, split)));
    stream->enqueue(load_weight(weight, part(split, rows.out - split)));
  }
  void compact() { stream->enqueue(compact_weight(weight)); }

  /// Whether the device holds the file's bits and the parts' scales.
  bool is_whole() {
    const auto buffer = weight->buffer();
    const WeightView view = weight->view();
    const auto reader = std::make_shared<Stream>(device, 1);
    const std::vector<uint8_t> bytes =
        read(*reader, {buffer, 0, DType::u8, {int64_t(buffer->bytes())}}).bytes;
    reader->close();
    if (bytes.size() != buffer->bytes()) return false;
    WeightView host = view;
    host.data = bytes.data();
    const auto* scales = reinterpret_cast<const float*>(bytes.data() + view.matrix_bytes);
    for (int32_t n = 0; n < rows.out; n++) {
      if (scales[n] != (n < rows.out / 2 ? 1.0f : float(rows.out / 2 + 1))) return false;
      for (int32_t k = 0; k < rows.in; k++) {
        const double value = unpack_element(host, 0, n, k);
        const double wanted = bf16_value(element(rows, n, k));
        if (std::memcmp(&value, &wanted, sizeof value) != 0) return false;
      }
    }
    return true;
  }
  bool is_compact() const { return weight->view().format == Format::compact_bf16; }
};

}  // namespace

TEST(cuda_compact_weight_after_loading) {
  for (const auto& [out, in] : {std::pair(100, 500), std::pair(33, 2688), std::pair(1, 4096)}) {
    Loaded loaded(normal_rows(out, in));
    const int64_t before = loaded.device->allocated_bytes();
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
    // What the stream stages in is the stream's; the plain copy is gone.
    loaded.stream->close();
    CHECK(loaded.device->allocated_bytes() <= before + (int64_t{64} << 20));
    CHECK(int64_t(loaded.weight->buffer()->bytes()) < int64_t(plain));
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
    loaded.load();
    loaded.compact();
    CHECK(!sync(*loaded.stream).error);
    CHECK(!loaded.is_compact());
    CHECK(loaded.is_whole());
    CHECK_EQ(loaded.weight->exceptions(), uint64_t(0));
    CHECK(loaded.weight->bind().format == Format::bf16);
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

#ifdef NIBBLET_EMULATED_CUDA
TEST(cuda_compact_weight_without_memory) {
  // First there is none for a piece of the stream's to work in, then none for the compact matrix.
  for (int number = 0; number < 3; number++) {
    Loaded loaded(normal_rows(70, 700));
    loaded.load();
    CHECK(!sync(*loaded.stream).error);
    {
      const emulated::FailingCall failing(cudaErrorMemoryAllocation, number, "cudaMalloc");
      loaded.compact();
      CHECK(!sync(*loaded.stream).error);
      CHECK_EQ(failing.failed().empty(), number == 2);
    }
    CHECK_EQ(loaded.is_compact(), number == 2);
    CHECK(loaded.is_whole());
  }
}

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
  {
    const auto command = compact_weight(loaded.weight);
    CHECK_THROWS("INVALID_OPTION", loaded.weight->bind(), "stream.sync()");
    CHECK_THROWS("INVALID_OPTION", load_weight(loaded.weight, loaded.part(0, 8)), "complete");
    CHECK_THROWS("INVALID_OPTION", compact_weight(loaded.weight), "already");
  }
  // The command went without having run.
  CHECK(loaded.is_whole());
  loaded.compact();
  CHECK(!sync(*loaded.stream).error);
  CHECK(loaded.is_compact());
  CHECK_THROWS("INVALID_OPTION", compact_weight(loaded.weight), "only a single bf16 matrix");
  CHECK_THROWS("INVALID_OPTION", load_weight(loaded.weight, loaded.part(0, 8)), "complete");
  loaded.weight->bind();

  Loaded used(normal_rows(40, 512));
  used.weight->bind();
  CHECK_THROWS("INVALID_OPTION", compact_weight(used.weight), "an op uses");
  const auto other = [&](Format format, Layout layout, int32_t matrices) {
    return std::make_shared<Weight>(loaded.device, format, layout, matrices, 16, 64);
  };
  CHECK_THROWS("INVALID_OPTION", compact_weight(other(Format::e4m3, Layout::fragments, 1)), "single bf16");
  CHECK_THROWS("INVALID_OPTION", compact_weight(other(Format::bf16, Layout::fragments, 2)), "single bf16");
  CHECK_THROWS("INVALID_OPTION", compact_weight(other(Format::bf16, Layout::rows, 1)), "single bf16");
  CHECK_THROWS("INVALID_OPTION", other(Format::compact_bf16, Layout::fragments, 1), "made of a bf16");
  CHECK_THROWS(
      "INVALID_OPTION",
      compact_weight(std::make_shared<Weight>(Device::open("cpu"), Format::bf16, Layout::rows, 1, 16, 64)),
      "GPU only");
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
