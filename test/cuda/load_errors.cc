#include "test/cuda/stub_source.h"
#include "test/cuda/upload.h"

using namespace nibblet;
using namespace nibblet::test;

namespace {

/// Fails every read with this errno from some byte on, or ends there.
class BrokenSource : public StubSource {
 public:
  BrokenSource(size_t good, int status)
      : StubSource("/broken/model.safetensors"), good_(good), status_(status) {}
  int read(size_t offset, size_t bytes, uint8_t* to) const noexcept override {
    if (offset + bytes > good_) return status_;
    std::memset(to, 0x22, bytes);
    return 0;
  }

 private:
  const size_t good_;
  const int status_;
};

/// Holds every read until its stream is closed.
class SlowSource : public BrokenSource {
 public:
  SlowSource() : BrokenSource(SIZE_MAX, 0) {}
  int read(size_t offset, size_t bytes, uint8_t* to) const noexcept override {
    reads.fetch_add(1);
    while (!open.load()) std::this_thread::yield();
    return BrokenSource::read(offset, bytes, to);
  }
  mutable std::atomic<int> reads{0};
  std::atomic<bool> open{false};
};

}  // namespace

TEST(cuda_load_of_files_that_were_cut_short) {
  for (const bool as_weight : {false, true}) {
    TemporaryFile file(std::string(1 << 20, '\x22'));
    GpuStream gpu;
    const FileTensor tensor{std::make_shared<MappedFile>(file.path()), 0, DType::u8, "layer.weight"};
    std::shared_ptr<Command> load;
    if (as_weight) {
      WeightPart part{};
      part.rows = 512;
      part.elements = tensor;
      part.elements.dtype = DType::e4m3;
      load = load_weight(std::make_shared<Weight>(gpu.device, Format::e4m3, Layout::fragments, 1, 512, 2048),
                         part);
    } else {
      load = load_tensor({std::make_shared<Buffer>(gpu.device, 1 << 20), 0, DType::u8, {1 << 20}}, tensor);
    }
    std::filesystem::resize_file(file.path(), 600000);
    gpu.stream->enqueue(load);
    CHECK_ERROR("BAD_FORMAT", sync(*gpu.stream).error, file.path(), "cut short", "download it again");
  }
}

TEST(cuda_load_of_files_that_cannot_be_read) {
  GpuStream gpu;
  const FileTensor tensor{std::make_shared<BrokenSource>(700000, EIO), 0, DType::u8, "layer.weight"};
  gpu.stream->enqueue(
      load_tensor({std::make_shared<Buffer>(gpu.device, 1 << 20), 0, DType::u8, {1 << 20}}, tensor));
  CHECK_ERROR("BAD_FORMAT", sync(*gpu.stream).error, "layer.weight", "/broken/model.safetensors",
              "Input/output error", "check the disk");
}

TEST(cuda_load_names_the_first_of_the_bad_bytes) {
  constexpr int32_t kRows = 700, kInputs = 2048;
  struct Case {
    std::vector<size_t> at;
    uint8_t bits;
    bool bad;
  };
  // Slices of 256 KiB: inside, at their borders, the first of several.
  const Case kCases[] = {
      {{0}, 0x7f, true},          {{262143}, 0xff, true},           {{262144}, 0x7f, true},
      {{1433599}, 0xff, true},    {{900001, 300000}, 0x7f, true},   {{262144, 262143, 1433599}, 0xff, true},
      {{5, 700000}, 0x7e, false}, {{5, 700000, 1000}, 0xfe, false},
  };
  for (const Case& test : kCases) {
    std::vector<uint8_t> bytes(size_t(kRows) * kInputs, 0x38);
    for (const size_t at : test.at) bytes[at] = test.bits;
    TemporaryFile file(bytes_of(bytes));
    GpuStream gpu(4);
    WeightPart part{};
    part.rows = kRows;
    part.elements = {std::make_shared<MappedFile>(file.path()), 0, DType::e4m3, "layer.weight"};
    part.scale = 1;
    gpu.stream->enqueue(load_weight(
        std::make_shared<Weight>(gpu.device, Format::e4m3, Layout::rows, 1, kRows, kInputs), part));
    const auto error = sync(*gpu.stream).error;
    CHECK_EQ(error.has_value(), test.bad);
    const std::string index = std::to_string(*std::min_element(test.at.begin(), test.at.end()));
    if (test.bad) CHECK_ERROR("BAD_FORMAT", error, "`layer.weight`", file.path(), "at index " + index + ";");
  }
}

TEST(cuda_load_names_bad_bytes_of_later_pieces) {
  constexpr int32_t kRows = 9000, kInputs = 2048;
  constexpr size_t kBad = size_t{8999} * kInputs + 17;
  std::string bytes(size_t(kRows) * kInputs, '\x38');
  bytes[kBad] = '\x7f';
  TemporaryFile file(bytes);
  GpuStream gpu;
  std::vector<WeightPart> parts(2);
  // A few rows first, so that the large part begins inside a piece.
  parts[0].rows = 300;
  parts[0].elements = {std::make_shared<MappedFile>(file.path()), 0, DType::e4m3, "first"};
  parts[1] = parts[0];
  parts[1].matrix = 1;
  parts[1].rows = kRows;
  parts[1].elements.name = "second";
  gpu.stream->enqueue(load_weight(
      std::make_shared<Weight>(gpu.device, Format::e4m3, Layout::rows, 2, kRows, kInputs), parts));
  CHECK_ERROR("BAD_FORMAT", sync(*gpu.stream).error, "`second`", "at index " + std::to_string(kBad) + ";");
}

TEST(cuda_load_names_bad_scales) {
  struct Case {
    const char* tensor;
    uint8_t block_scale;
    float row_scale;
    const char* text;
  };
  for (const Case& test :
       {Case{"block", 0x7f, 1, "at index 21;"}, Case{"block", 0x81, 1, "at index 21;"},
        Case{"row", 0x38, NAN, "nan"}, Case{"row", 0x38, -1, "-1.0"}, Case{"row", 0x38, INFINITY, "inf"}}) {
    std::vector<uint8_t> scales(16 * 2, 0x38);
    scales[21] = test.block_scale;
    std::vector<float> rows(16, 1.0f);
    rows[9] = test.row_scale;
    TemporaryFile codes(std::string(16 * 16, '\x22')), block(bytes_of(scales)), row(bytes_of(rows));
    const auto in = [](const TemporaryFile& file, DType dtype, const char* name) {
      return FileTensor{std::make_shared<MappedFile>(file.path()), 0, dtype, name};
    };
    std::vector<WeightPart> parts(2);
    for (int32_t i = 0; i < 2; ++i) {
      // The second begins in the middle, where the fault is at another index of its own.
      parts[size_t(i)].rows = 16;
      parts[size_t(i)].matrix = i;
      parts[size_t(i)].elements = in(codes, DType::u8, "codes");
      parts[size_t(i)].block_scales = in(block, DType::e4m3, "block");
      parts[size_t(i)].row_scales = in(row, DType::f32, "row");
    }
    GpuStream gpu;
    gpu.stream->enqueue(load_weight(
        std::make_shared<Weight>(gpu.device, Format::nvfp4, Layout::fragments, 2, 16, 32), parts));
    CHECK_ERROR("BAD_FORMAT", sync(*gpu.stream).error, std::string("`") + test.tensor + "`", test.text,
                (test.tensor == std::string("row") ? row : block).path());
  }
}

TEST(cuda_load_that_fails_leaves_device_and_weight_usable) {
  const Matrices good(Format::nvfp4, 3, 40, 64);
  const auto device = Device::open("cuda:0");
  const auto weight = good.weight(device, Layout::fragments);
  {
    GpuStream gpu;
    std::vector<WeightPart> parts = good.parts();
    parts[1].elements = {std::make_shared<BrokenSource>(0, ByteSource::kEnded), 0, DType::u8, "gone"};
    gpu.stream->enqueue(load_weight(weight, parts));
    CHECK_ERROR("BAD_FORMAT", sync(*gpu.stream).error, "cut short");
  }
  GpuStream gpu;
  gpu.stream->enqueue(load_weight(weight, good.parts()));
  CHECK(!sync(*gpu.stream).error);
  CHECK(good.are_in(gpu.bytes_of(weight->buffer()), Layout::fragments));
}

TEST(cuda_load_is_cut_short_by_close) {
  const auto source = std::make_shared<SlowSource>();
  GpuStream gpu(2);
  Outcomes outcomes;
  constexpr int64_t kBytes = int64_t{8} << 20;
  const Tensor tensor{std::make_shared<Buffer>(gpu.device, size_t(kBytes)), 0, DType::u8, {kBytes}};
  for (int i = 0; i < 3; ++i) gpu.stream->enqueue(load_tensor(tensor, {source, 0, DType::u8, "slow"}));
  gpu.stream->sync(outcomes.completion());
  while (source->reads.load() == 0) std::this_thread::yield();
  std::thread opener([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(30));
    source->open.store(true);
  });
  gpu.stream->close();
  opener.join();
  CHECK_ERROR("STREAM_FAILED", outcomes.wait(1).at(0).error);
  // Each thread ended its slice of the first.
  CHECK(source->reads.load() <= 2);
}

TEST(cuda_load_is_not_captured) {
  GpuStream gpu;
  const Matrices matrices(Format::bf16, 1, 16, 16);
  const auto weight = matrices.weight(gpu.device, Layout::fragments);
  gpu.stream->begin_capture();
  gpu.stream->enqueue(load_weight(weight, matrices.parts()));
  const auto graph = gpu.stream->end_capture({}, false);
  Outcomes outcomes;
  gpu.stream->launch(graph, make_input_of({1}), nullptr, outcomes.completion());
  CHECK_ERROR("INVALID_OPTION", outcomes.wait(1).at(0).error, "cannot be captured");
}

TEST(cuda_load_of_rows_longer_than_a_piece) {
  GpuStream gpu;
  constexpr int32_t kInputs = 5 << 20;
  WeightPart part{};
  part.rows = 1;
  part.elements = {std::make_shared<BrokenSource>(SIZE_MAX, 0), 0, DType::f32, "layer.weight"};
  gpu.stream->enqueue(
      load_weight(std::make_shared<Weight>(gpu.device, Format::f32, Layout::rows, 1, 1, kInputs), part));
  CHECK_ERROR("BAD_FORMAT", sync(*gpu.stream).error, "layer.weight", "rows", "which no model has");
}
