#include "native/runtime/synthetic_file.h"

#include "kernels/pack/pack.h"
#include "native/runtime/load.h"
#include "native/runtime/mapped_file.h"
#include "test/runtime/fixture.h"

using namespace nibblet;
using namespace nibblet::test;

namespace {

SyntheticFile::Table make_table(Draw draw, bool alternate = false) {
  Random random(int(draw) + 1);
  std::vector<uint8_t> entries;
  for (size_t i = 0; i < draw_entries(draw) * draw_entry_bytes(draw) / 4; ++i) {
    // Floats, so that signs and NaNs are not what a test happens to meet.
    const float value = random.normals(1)[0];
    uint8_t bytes[4];
    std::memcpy(bytes, &value, sizeof bytes);
    entries.insert(entries.end(), bytes, bytes + 4);
  }
  return {draw, alternate, entries};
}

/// Regions of awkward sizes, one of each kind.
SyntheticFile make_file() {
  std::vector<SyntheticFile::Table> tables = {make_table(Draw::pairs),        make_table(Draw::bytes),
                                              make_table(Draw::halves),       make_table(Draw::words),
                                              make_table(Draw::halves, true), make_table(Draw::words, true)};
  std::vector<SyntheticFile::Region> regions;
  size_t offset = 0;
  const size_t sizes[] = {4099, 77, 1, 2050, 5204, 64, 3};
  for (size_t i = 0; i < std::size(sizes); ++i) {
    regions.push_back({offset, sizes[i], i % tables.size(), 1000 + i});
    offset += sizes[i];
  }
  return SyntheticFile("synthetic:test", tables, regions);
}

std::vector<uint8_t> whole(const SyntheticFile& file) {
  std::vector<uint8_t> bytes(file.bytes());
  file.fill(0, bytes.size(), bytes.data(), 0, 1);
  return bytes;
}

}  // namespace

TEST(synthetic_file_any_split_gives_the_same_bytes) {
  const SyntheticFile file = make_file();
  const std::vector<uint8_t> expected = whole(file);
  for (int workers : {2, 3, 7, 64}) {
    std::vector<uint8_t> bytes(file.bytes(), 0xee);
    for (int worker = workers - 1; worker >= 0; --worker)
      file.fill(0, bytes.size(), bytes.data(), worker, workers);
    CHECK(bytes == expected);
  }
  for (size_t step : {1, 2, 3, 5, 8, 13, 16, 100, 4098}) {
    std::vector<uint8_t> bytes(file.bytes() + step, 0xee);
    for (size_t at = 0; at < file.bytes(); at += step) {
      const size_t count = std::min(step, file.bytes() - at);
      file.fill(at, count, bytes.data() + at, 0, 1);
      CHECK_EQ(bytes[at + count], 0xee);
    }
    bytes.resize(file.bytes());
    CHECK(bytes == expected);
  }
}

TEST(synthetic_file_is_splitmix64) {
  // The first outputs of the published generator from seed 1234567.
  std::vector<uint8_t> identity(256);
  for (size_t i = 0; i < 256; ++i) identity[i] = uint8_t(i);
  const SyntheticFile file("f", {{Draw::bytes, false, identity}}, {{0, 16, 0, 1234567}});
  uint64_t words[2];
  file.fill(0, 16, reinterpret_cast<uint8_t*>(words), 0, 1);
  CHECK_EQ(words[0], 6457827717110365317u);
  CHECK_EQ(words[1], 3203168211198807973u);
}

TEST(synthetic_file_alternating_rows_sum_to_zero) {
  const SyntheticFile file("f", {make_table(Draw::words, true)}, {{0, 4096, 0, 5}});
  std::vector<float> values(1024);
  file.fill(0, 4096, reinterpret_cast<uint8_t*>(values.data()), 0, 1);
  for (size_t i = 0; i < values.size(); i += 2) CHECK_EQ(values[i], -values[i + 1]);
  CHECK(values[0] != values[2]);
}

TEST(synthetic_file_loads_like_a_file_on_disk) {
  // 1024 rows are more than one piece of the loader.
  constexpr int32_t kRows = 1025, kInputs = 8192;
  const size_t codes = size_t(kRows) * kInputs / 2, scales = size_t(kRows) * kInputs / 16;
  SyntheticFile::Table positive = make_table(Draw::bytes);
  for (uint8_t& entry : positive.entries) entry = 1 + entry % 0x70;
  auto file = std::make_shared<SyntheticFile>(
      "f", std::vector{make_table(Draw::pairs), positive},
      std::vector<SyntheticFile::Region>{{0, codes, 0, 8}, {codes, scales, 1, 9}});
  const std::vector<uint8_t> bytes = whole(*file);
  TemporaryFile disk(bytes_of(bytes));
  std::vector<uint8_t> loaded[2];
  for (bool synthetic : {false, true}) {
    const auto source =
        synthetic ? std::shared_ptr<ByteSource>(file) : std::make_shared<MappedFile>(disk.path());
    auto weight =
        std::make_shared<Weight>(Device::open("cpu"), Format::nvfp4, Layout::panels, 1, kRows, kInputs);
    WeightPart part{};
    part.rows = kRows;
    part.elements = {source, 0, DType::u8, "codes"};
    part.block_scales = {source, codes, DType::e4m3, "scales"};
    part.scale = 1;
    auto stream = open_stream(synthetic ? 3 : 1);
    stream->enqueue(load_weight(weight, part));
    Tensor tensor = make_tensor(DType::u8, {int64_t(bytes.size())});
    stream->enqueue(load_tensor(tensor, {source, 0, DType::u8, "all"}));
    CHECK(!sync(*stream).error);
    CHECK(std::memcmp(tensor.as<uint8_t>(), bytes.data(), bytes.size()) == 0);
    loaded[synthetic].assign(weight->matrix(0), weight->matrix(0) + weight->view().matrix_bytes);
  }
  CHECK(loaded[0] == loaded[1]);
}

TEST(synthetic_file_bad_scale_is_named_by_its_index) {
  constexpr int32_t kRows = 1040, kInputs = 8192;
  const size_t codes = size_t(kRows) * kInputs / 2, scales = size_t(kRows) * kInputs / 16;
  std::vector<uint8_t> good(codes + scales, 0x38);
  good[codes + size_t(1030) * kInputs / 16 + 4] = 0xff;
  TemporaryFile disk(bytes_of(good));
  const auto source = std::make_shared<MappedFile>(disk.path());
  auto weight =
      std::make_shared<Weight>(Device::open("cpu"), Format::nvfp4, Layout::panels, 1, kRows, kInputs);
  WeightPart part{};
  part.rows = kRows;
  part.elements = {source, 0, DType::u8, "codes"};
  part.block_scales = {source, codes, DType::e4m3, "scales"};
  part.scale = 1;
  auto stream = open_stream();
  stream->enqueue(load_weight(weight, part));
  CHECK_ERROR("BAD_FORMAT", sync(*stream).error, "`scales`",
              "index " + std::to_string(1030 * kInputs / 16 + 4) + ";");
}

TEST(synthetic_file_checks_its_description) {
  const auto table = make_table(Draw::bytes);
  CHECK_THROWS("INVALID_OPTION", SyntheticFile("f", {{Draw::pairs, false, table.entries}}, {}),
               "256 bytes, expected 65536");
  CHECK_THROWS("INVALID_OPTION", SyntheticFile("f", {{Draw::bytes, true, table.entries}}, {}), "alternate");
  CHECK_THROWS("INVALID_OPTION", SyntheticFile("f", {table}, {{1, 5, 0, 0}}), "does not follow");
  CHECK_THROWS("INVALID_OPTION", SyntheticFile("f", {table}, {{0, 5, 1, 0}}), "has no table");
  const SyntheticFile file("f", {table}, {{0, 5, 0, 0}});
  file.check(0, 5);
  CHECK_THROWS("BAD_FORMAT", file.check(0, 6), "has 5 bytes");
  CHECK_THROWS("BAD_FORMAT", file.check(SIZE_MAX, 2), "has 5 bytes");
}
