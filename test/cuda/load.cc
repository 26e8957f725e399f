#include "native/runtime/cuda/staging.h"
#include "test/cuda/device.h"
#include "test/cuda/stub_source.h"
#include "test/cuda/upload.h"
#ifdef NIBBLET_EMULATED_CUDA
#include "test/emulator/control.h"
#endif

using namespace nibblet;
using namespace nibblet::test;

namespace {

bool loads(const Matrices& matrices, Layout layout, std::vector<std::vector<WeightPart>> calls) {
  GpuStream gpu;
  const auto weight = matrices.weight(gpu.device, layout);
  for (std::vector<WeightPart>& parts : calls) gpu.stream->enqueue(load_weight(weight, std::move(parts)));
  CHECK(!sync(*gpu.stream).error);
  return matrices.are_in(gpu.bytes_of(weight->buffer()), layout);
}

/// Counts what is read.
class CountingSource : public StubSource {
 public:
  explicit CountingSource(size_t bytes) : StubSource("counted"), bytes_(bytes) {}
  int read(size_t offset, size_t bytes, uint8_t* to) const noexcept override {
    if (offset + bytes > bytes_) return kEnded;
    std::memset(to, int(offset / 4096 % 120), bytes);
    reads.fetch_add(1);
    return 0;
  }
  mutable std::atomic<int> reads{0};

 private:
  const size_t bytes_;
};

}  // namespace

TEST(cuda_load_matrices_of_one_call) {
  for (const Format format : kFormats) {
    for (const Layout layout : gpu_layouts(format)) {
      const Matrices matrices(format, 5, 40, 48);
      CHECK(loads(matrices, layout, {matrices.parts()}));
      // In parts that end inside tiles, in any order, in one call and in several.
      std::vector<std::vector<WeightPart>> calls(3);
      for (int32_t i = 4; i >= 0; --i) {
        calls[size_t(i) % 3].push_back(matrices.part(i, 10, 21));
        calls[size_t(i) % 3].push_back(matrices.part(i, 31, 9));
        calls[size_t(i) % 3].push_back(matrices.part(i, 0, 10));
      }
      CHECK(loads(matrices, layout, calls));
      calls[0].insert(calls[0].end(), calls[1].begin(), calls[1].end());
      calls[0].insert(calls[0].end(), calls[2].begin(), calls[2].end());
      CHECK(loads(matrices, layout, {calls[0]}));
    }
  }
  // A call without parts, and one behind it.
  const Matrices one(Format::nvfp4, 1, 16, 32);
  CHECK(loads(one, Layout::rows, {{}, one.parts()}));
}

TEST(cuda_load_more_than_all_pieces_hold) {
  // 4.8 MB each: three and a part of the fourth share a piece, and the pieces come round twice.
  const Matrices many(Format::f32, 22, 600, 2000);
  CHECK(loads(many, Layout::rows, {many.parts()}));
  std::vector<std::vector<WeightPart>> alone;
  for (const WeightPart& part : many.parts()) alone.push_back({part});
  CHECK(loads(many, Layout::rows, alone));
  // 36 MB, cut where pieces end; behind a small one, so that the first piece is not its own.
  const Matrices large(Format::bf16, 2, 3000, 3001);
  CHECK(loads(large, Layout::rows, {{large.part(1, 0, 7), large.part(0, 0, 3000), large.part(1, 7, 2993)}}));
}

TEST(cuda_load_cuts_matrices_where_a_piece_ends) {
  constexpr int32_t kRows = 300, kInputs = 512;
  const auto source = std::make_shared<CountingSource>(CudaStaging::kPieceBytes);
  for (const Format format : kFormats) {
    const size_t codes =
        format == Format::nvfp4 ? kInputs / 2 + kInputs / 16 : kInputs * dtype_bytes(stored_dtype(format));
    for (const Layout layout : gpu_layouts(format)) {
      GpuStream gpu;
      // Leaves room for 200 rows, of which 128 are taken.
      const size_t filler = CudaStaging::kPieceBytes - 200 * (codes + sizeof(float));
      const Tensor tensor{std::make_shared<Buffer>(gpu.device, filler), 0, DType::u8, {int64_t(filler)}};
      gpu.stream->enqueue(load_tensor(tensor, {source, 0, DType::u8, "filler"}));
      const Matrices matrices(format, 2, kRows, kInputs);
      const auto weight = matrices.weight(gpu.device, layout);
      gpu.stream->enqueue(load_weight(weight, matrices.parts()));
      CHECK(!sync(*gpu.stream).error);
      CHECK(matrices.are_in(gpu.bytes_of(weight->buffer()), layout));
    }
  }
}

TEST(cuda_load_widens_and_scales_rows) {
  constexpr int32_t kRows = 90, kInputs = 7001;
  Random random(5);
  const std::vector<float> values = random.normals(size_t(kRows) * kInputs);
  std::vector<uint16_t> narrow(values.size());
  for (size_t i = 0; i < values.size(); ++i) narrow[i] = bf16_from_float(values[i]);
  // The same numbers in f16 where it has them: 1, 2, 0.5 and -1.
  const uint16_t kHalves[] = {0x3c00, 0x4000, 0x3800, 0xbc00};
  const float kHalfValues[] = {1, 2, 0.5f, -1};
  std::vector<uint16_t> half(values.size());
  for (size_t i = 0; i < half.size(); ++i) half[i] = kHalves[i % 4];
  std::vector<uint16_t> scales(kRows);
  for (size_t i = 0; i < scales.size(); ++i) scales[i] = bf16_from_float(float(i) / 64);
  TemporaryFile narrow_file(std::string(1, 'x').append(bytes_of(narrow))),
      half_file(std::string(3, 'x').append(bytes_of(half))),
      scale_file(std::string(1, 'x').append(bytes_of(scales)));
  const auto source = [](const TemporaryFile& file) { return std::make_shared<MappedFile>(file.path()); };

  GpuStream gpu;
  const auto weight = std::make_shared<Weight>(gpu.device, Format::f32, Layout::rows, 2, kRows, kInputs);
  std::vector<WeightPart> parts(2);
  parts[0].rows = kRows;
  parts[0].elements = {source(narrow_file), 1, DType::bf16, "narrow"};
  parts[0].row_scales = {source(scale_file), 1, DType::bf16, "scales"};
  parts[1] = parts[0];
  parts[1].matrix = 1;
  parts[1].elements = {source(half_file), 3, DType::f16, "half"};
  parts[1].row_scales = {};
  parts[1].scale = 0.25f;
  parts[1].input_scale = 0.5f;
  gpu.stream->enqueue(load_weight(weight, parts));
  const Tensor tensor{
      std::make_shared<Buffer>(gpu.device, values.size() * 4), 0, DType::f32, {int64_t(values.size())}};
  gpu.stream->enqueue(load_tensor(tensor, parts[0].elements));
  CHECK(!sync(*gpu.stream).error);
  CHECK_EQ(weight->view().input_scale, 0.5f);
  const std::vector<uint8_t> loaded = gpu.bytes_of(weight->buffer());
  const auto* floats = reinterpret_cast<const float*>(loaded.data());
  const size_t matrix = weight->view().matrix_bytes / sizeof(float);
  for (size_t i = 0; i < values.size(); ++i) {
    if (floats[i] != bf16_to_float(narrow[i])) return CHECK_EQ(floats[i], bf16_to_float(narrow[i]));
    if (floats[matrix + i] != kHalfValues[i % 4]) return CHECK_EQ(floats[matrix + i], kHalfValues[i % 4]);
  }
  for (size_t i = 0; i < kRows; ++i) {
    CHECK_EQ(floats[2 * matrix + i], float(i) / 64);
    CHECK_EQ(floats[2 * matrix + kRows + i], 0.25f);
  }
  CHECK(std::memcmp(gpu.bytes_of(tensor.buffer).data(), floats, values.size() * 4) == 0);
}

TEST(cuda_load_tensors_of_all_sizes) {
  Random random(7);
  const std::vector<float> values = random.normals((size_t{36} << 20) / 4 + 5);
  TemporaryFile file(std::string(2, 'x').append(bytes_of(values)));
  const auto source = std::make_shared<MappedFile>(file.path());
  GpuStream gpu;
  std::vector<Tensor> tensors;
  // Small ones share a piece; then one of several pieces, and small ones again.
  for (const size_t count : {size_t{1}, size_t{77}, values.size(), size_t{3}, size_t{100000}}) {
    tensors.push_back({std::make_shared<Buffer>(gpu.device, count * 4), 0, DType::f32, {int64_t(count)}});
    gpu.stream->enqueue(load_tensor(tensors.back(), {source, 2, DType::f32, "tensor"}));
  }
  CHECK(!sync(*gpu.stream).error);
  for (const Tensor& tensor : tensors)
    CHECK(std::memcmp(gpu.bytes_of(tensor.buffer).data(), values.data(), tensor.bytes()) == 0);
}

TEST(cuda_load_reads_every_byte_once) {
  const auto source = std::make_shared<CountingSource>(size_t{20} << 20);
  GpuStream gpu;
  const Tensor tensor{std::make_shared<Buffer>(gpu.device, size_t{20} << 20), 0, DType::u8, {20 << 20}};
  gpu.stream->enqueue(load_tensor(tensor, {source, 0, DType::u8, "counted"}));
  CHECK(!sync(*gpu.stream).error);
  CHECK_EQ(source->reads.load(), 80);
}

TEST(cuda_staging_ends_a_piece_when_it_is_full) {
  GpuStream gpu;
#ifdef NIBBLET_EMULATED_CUDA
  const size_t pinned = emulated::pinned_bytes();
#endif
  constexpr size_t kPiece = CudaStaging::kPieceBytes;
  const auto device = std::static_pointer_cast<CudaDevice>(gpu.device);
  CudaStaging staging(device, cuda_target().stream);
  const auto first = staging.take(1000);
  const auto second = staging.take(kPiece - 1024);
  CHECK_EQ(second.host - first.host, 1024);
  CHECK_EQ(second.device - first.device, 1024);
  CHECK_EQ(staging.room(), size_t{0});
  const auto third = staging.take(kPiece / 2 + 1);
  CHECK(third.host != first.host);
  // Half of it does not fit behind.
  CHECK_EQ(staging.room(), kPiece / 2 - 256);
  const auto fourth = staging.take(kPiece / 2);
  CHECK(fourth.host != third.host);
  CHECK(fourth.host != first.host);
  // The first comes round again.
  CHECK(staging.take(kPiece).host == first.host);
  CHECK_THROWS("OP_FAILED", staging.take(kPiece + 1), "too large");
  staging.release();
  CHECK_EQ(staging.room(), kPiece);
#ifdef NIBBLET_EMULATED_CUDA
  CHECK_EQ(emulated::pinned_bytes(), pinned);
#endif
}

#ifdef NIBBLET_EMULATED_CUDA
TEST(cuda_staging_survives_failing_calls) {
  GpuStream gpu;
  const auto device = std::static_pointer_cast<CudaDevice>(gpu.device);
  const size_t pinned = emulated::pinned_bytes();
  for (int number = 0; number < 8; ++number) {
    CudaStaging staging(device, cuda_target().stream);
    const auto host = staging.take(100).host;
    std::optional<Error> error;
    {
      const emulated::FailingCall failing(cudaErrorMemoryAllocation, number);
      error = error_of([&] { staging.take(CudaStaging::kPieceBytes); });
      CHECK_EQ(error.has_value(), !failing.failed().empty());
    }
    // The call that is made again finds what the first found, and gets another piece.
    const auto region = staging.take(CudaStaging::kPieceBytes);
    CHECK(region.host != host);
    std::memset(region.host, 1, CudaStaging::kPieceBytes);
    staging.send(region.host, CudaStaging::kPieceBytes, region.device);
    staging.release();
  }
  CHECK_EQ(emulated::pinned_bytes(), pinned);
}
#endif
