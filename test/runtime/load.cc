#include "native/runtime/load.h"

#include <sys/stat.h>

#include <filesystem>

#include "kernels/numerics/bf16.h"
#include "kernels/pack/pack.h"
#include "native/runtime/mapped_file.h"
#include "test/runtime/fixture.h"

using namespace nibblet;
using namespace nibblet::test;

namespace {

FileTensor in_file(const TemporaryFile& file, DType dtype, size_t offset = 0,
                   const char* name = "layer.weight") {
  return {std::make_shared<MappedFile>(file.path()), offset, dtype, name};
}

WeightPart part(FileTensor elements, int32_t rows) {
  WeightPart part{};
  part.rows = rows;
  part.elements = std::move(elements);
  part.scale = 1;
  return part;
}

std::shared_ptr<Weight> make_weight(Format format, Layout layout, int32_t out, int32_t in,
                                    int32_t matrices = 1) {
  return std::make_shared<Weight>(Device::open("cpu"), format, layout, matrices, out, in);
}

}  // namespace

TEST(load_files_that_cannot_be_mapped) {
  CHECK_THROWS("BAD_FORMAT", MappedFile("/nowhere/model.safetensors"), "/nowhere/model.safetensors",
               "No such file");
  CHECK_THROWS("BAD_FORMAT", MappedFile("/"), "no regular file");
  TemporaryFile pipe("");
  std::filesystem::remove(pipe.path());
  CHECK_EQ(mkfifo(pipe.path().c_str(), 0600), 0);
  CHECK_THROWS("BAD_FORMAT", MappedFile(pipe.path()), pipe.path(), "no regular file");
}

TEST(load_truncated_file) {
  auto stream = open_stream();
  TemporaryFile file(std::string(100, 'x'));
  Tensor to = make_tensor(DType::f32, {25});
  stream->enqueue(load_tensor(to, in_file(file, DType::f32)));
  CHECK_THROWS("BAD_FORMAT", load_tensor(to, in_file(file, DType::f32, 1)), file.path(), "truncated",
               "it has 100");
  CHECK_THROWS("BAD_FORMAT", load_tensor(to, in_file(file, DType::f32, SIZE_MAX - 3)), "truncated");
  TemporaryFile empty("");
  CHECK_THROWS("BAD_FORMAT", load_tensor(to, in_file(empty, DType::f32)), empty.path(), "it has 0");
  auto weight = make_weight(Format::f32, Layout::rows, 5, 5);
  CHECK_THROWS("BAD_FORMAT", load_weight(weight, part(in_file(file, DType::f32, 4), 5)), file.path(),
               "truncated");
  auto codes = make_weight(Format::nvfp4, Layout::panels, 4, 32);
  WeightPart nvfp4 = part(in_file(file, DType::u8), 4);
  nvfp4.block_scales = in_file(file, DType::e4m3, 93);
  CHECK_THROWS("BAD_FORMAT", load_weight(codes, nvfp4), "truncated");
  CHECK(!sync(*stream).error);
}

TEST(load_file_cut_short_after_mapping) {
  // Without the check this is a SIGBUS.
  TemporaryFile file(std::string(1 << 16, 'x'));
  Tensor to = make_tensor(DType::u8, {1 << 16});
  for (bool as_weight : {false, true}) {
    std::ofstream(file.path(), std::ios::binary) << std::string(1 << 16, 'x');
    auto stream = open_stream();
    Gate gate;
    stream->enqueue(gate.command());
    if (as_weight) {
      stream->enqueue(load_weight(make_weight(Format::f32, Layout::rows, 128, 128),
                                  part(in_file(file, DType::f32), 128)));
    } else {
      stream->enqueue(load_tensor(to, in_file(file, DType::u8)));
    }
    std::filesystem::resize_file(file.path(), 10);
    gate.open();
    CHECK_ERROR("BAD_FORMAT", sync(*stream).error, file.path(), "cut short");
  }
}

TEST(load_tensor_bit_for_bit_and_widened) {
  auto stream = open_stream();
  Random random(3);
  std::vector<float> values = random.normals((1 << 20) + 77);
  values[1] = -0.0f;
  TemporaryFile file("x" + bytes_of(values));
  Tensor same = make_tensor(DType::f32, {int64_t(values.size())});
  stream->enqueue(load_tensor(same, in_file(file, DType::f32, 1)));
  CHECK(!sync(*stream).error);
  CHECK(std::memcmp(same.as<float>(), values.data(), values.size() * 4) == 0);

  std::vector<uint16_t> narrow;
  for (float value : values) narrow.push_back(bf16_from_float(value));
  // 1.5, -2, the smallest subnormal, infinity, 65504 in f16.
  for (uint16_t bits : {0x3e00, 0xc000, 0x0001, 0x7c00, 0x7bff}) narrow.push_back(bits);
  // Behind one byte, so that nothing is aligned.
  TemporaryFile narrow_file(std::string(1, 'x').append(bytes_of(narrow)));
  stream->enqueue(load_tensor(same, in_file(narrow_file, DType::bf16, 1)));
  Tensor half = make_tensor(DType::f32, {5});
  stream->enqueue(load_tensor(half, in_file(narrow_file, DType::f16, 1 + 2 * values.size())));
  CHECK(!sync(*stream).error);
  for (size_t i = 0; i < values.size(); ++i) {
    if (same.as<float>()[i] != bf16_to_float(narrow[i]))
      CHECK_EQ(same.as<float>()[i], bf16_to_float(narrow[i]));
  }
  const float expected[] = {1.5f, -2.0f, 0x1p-24f, INFINITY, 65504.0f};
  for (size_t i = 0; i < 5; ++i) CHECK_EQ(half.as<float>()[i], expected[i]);
}

TEST(load_tensor_dtypes_that_do_not_fit) {
  TemporaryFile file(std::string(64, '\0'));
  struct Pair {
    DType to, from;
  };
  for (auto [to, from] :
       {Pair{DType::bf16, DType::f32}, Pair{DType::f32, DType::e4m3}, Pair{DType::f32, DType::i32},
        Pair{DType::bf16, DType::f16}, Pair{DType::i32, DType::u32}, Pair{DType::f32, DType::u8}}) {
    CHECK_THROWS("INVALID_OPTION", load_tensor(make_tensor(to, {2}), in_file(file, from)), "layer.weight",
                 dtype_name(from));
  }
}

TEST(load_weight_checks_its_part) {
  TemporaryFile file(std::string(4096, '\0'));
  auto weight = make_weight(Format::bf16, Layout::panels, 8, 16, 2);
  auto good = part(in_file(file, DType::bf16), 8);
  CHECK(!error_of([&] { load_weight(weight, good); }));
  auto check = [&](auto change, const char* code, const char* text) {
    WeightPart bad = good;
    change(bad);
    CHECK_THROWS(code, load_weight(weight, bad), "layer.weight", text);
  };
  check([](WeightPart& p) { p.matrix = 2; }, "INVALID_OPTION", "inside its weight");
  check([](WeightPart& p) { p.matrix = -1; }, "INVALID_OPTION", "inside its weight");
  check([](WeightPart& p) { p.first_row = 1; }, "INVALID_OPTION", "inside its weight");
  check([](WeightPart& p) { p.first_row = INT32_MAX; }, "INVALID_OPTION", "inside its weight");
  check([](WeightPart& p) { p.first_row = -1; }, "INVALID_OPTION", "inside its weight");
  check([](WeightPart& p) { p.rows = 0; }, "INVALID_OPTION", "inside its weight");
  check([](WeightPart& p) { p.elements.dtype = DType::f32; }, "INVALID_OPTION", "f32 does not fit");
  check([&](WeightPart& p) { p.block_scales = p.elements; }, "INVALID_OPTION", "block scales");
  check([&](WeightPart& p) { p.row_scales = p.elements, p.row_scales.dtype = DType::u8; }, "INVALID_OPTION",
        "are u8");
  for (float scale : {std::nanf(""), INFINITY, -1.0f}) {
    check([=](WeightPart& p) { p.scale = scale; }, "BAD_FORMAT", "the scale of tensor");
    check([=](WeightPart& p) { p.input_scale = scale; }, "BAD_FORMAT", "the scale of tensor");
  }
}

TEST(load_weight_nan_scales_name_tensor_and_file) {
  struct Case {
    const char* name;
    uint8_t block_scale;
    float row_scale;
  };
  for (Case test : {Case{"block", 0x7f, 1}, Case{"block", 0xff, 1}, Case{"block", 0x81, 1},
                    Case{"row", 0x38, NAN}, Case{"row", 0x38, -1}, Case{"row", 0x38, INFINITY}}) {
    std::vector<uint8_t> scales(16 * 2, 0x38);
    scales[21] = test.block_scale;
    std::vector<float> rows(16, 1.0f);
    rows[9] = test.row_scale;
    TemporaryFile codes(std::string(16 * 16, '\x22')), block(bytes_of(scales)), row(bytes_of(rows));
    WeightPart given = part(in_file(codes, DType::u8), 16);
    given.block_scales = in_file(block, DType::e4m3, 0, "block.scale");
    given.row_scales = in_file(row, DType::f32, 0, "row.scale");
    auto stream = open_stream();
    stream->enqueue(load_weight(make_weight(Format::nvfp4, Layout::panels, 16, 32), given));
    bool block_is_bad = test.name == std::string("block");
    CHECK_ERROR("BAD_FORMAT", sync(*stream).error, block_is_bad ? "`block.scale`" : "`row.scale`",
                block_is_bad ? block.path() : row.path());
  }
  // The NaN of an fp8 element.
  TemporaryFile elements(std::string(16 * 16 - 1, '\x38') + '\x7f');
  auto stream = open_stream();
  stream->enqueue(
      load_weight(make_weight(Format::e4m3, Layout::rows, 16, 16), part(in_file(elements, DType::e4m3), 16)));
  CHECK_ERROR("BAD_FORMAT", sync(*stream).error, "`layer.weight`", elements.path());
}

TEST(load_weight_parts_and_widening) {
  // Rows 0 and 1 from f32, row 2 from f16, into one f32 weight.
  std::vector<float> wide = {1, 2, 3, -4, 5, 6, 7, 8};
  std::vector<uint16_t> half = {0x3c00, 0xbc00, 0x4000, 0x3800};
  TemporaryFile wide_file(bytes_of(wide)), half_file(bytes_of(half));
  for (Layout layout : {Layout::rows, Layout::panels}) {
    auto weight = make_weight(Format::f32, layout, 3, 4);
    auto stream = open_stream();
    stream->enqueue(load_weight(weight, part(in_file(wide_file, DType::f32), 2)));
    WeightPart last = part(in_file(half_file, DType::f16), 1);
    last.first_row = 2;
    last.scale = 0.5f;
    last.input_scale = 0.25f;
    stream->enqueue(load_weight(weight, last));
    CHECK(!sync(*stream).error);
    WeightView view = weight->view();
    for (int32_t k = 0; k < 4; ++k) {
      CHECK_EQ(unpack_element(view, 0, 0, k), wide[size_t(k)]);
      CHECK_EQ(unpack_element(view, 0, 1, k), wide[size_t(4 + k)]);
    }
    const float expected[] = {1, -1, 2, 0.5f};
    for (int32_t k = 0; k < 4; ++k) CHECK_EQ(unpack_element(view, 0, 2, k), expected[k]);
    CHECK_EQ(weight->row_scales(0)[1], 1.0f);
    CHECK_EQ(weight->row_scales(0)[2], 0.5f);
    CHECK_EQ(view.input_scale, 0.25f);
  }
}

TEST(load_is_cut_short_by_close) {
  TemporaryFile file(std::string(64 << 20, 'x'));
  auto stream = open_stream();
  Outcomes outcomes;
  Tensor to = make_tensor(DType::u8, {64 << 20});
  for (int i = 0; i < 50; ++i) stream->enqueue(load_tensor(to, in_file(file, DType::u8)));
  stream->sync(outcomes.completion());
  stream->close();
  CHECK_ERROR("STREAM_FAILED", outcomes.wait(1).at(0).error);
}

TEST(weight_shapes_that_cannot_be) {
  CHECK_THROWS("INVALID_OPTION", make_weight(Format::f32, Layout::rows, 0, 4), "at least one");
  CHECK_THROWS("INVALID_OPTION", make_weight(Format::f32, Layout::rows, 4, -1), "at least one");
  CHECK_THROWS("INVALID_OPTION", make_weight(Format::nvfp4, Layout::rows, 4, 24), "blocks of 16");
  for (Format format : {Format::f32, Format::bf16, Format::e4m3, Format::nvfp4}) {
    // The product of these wraps around 64 bits.
    CHECK_THROWS("OUT_OF_MEMORY", make_weight(format, Layout::panels, INT32_MAX, INT32_MAX - 15, INT32_MAX),
                 "cannot allocate");
    CHECK_THROWS("OUT_OF_MEMORY", make_weight(format, Layout::rows, 1 << 30, 1 << 30, 16), "cannot allocate");
  }
}
