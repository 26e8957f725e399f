#include "native/runtime/file_reads.h"

#include <algorithm>

#include "native/runtime/mapped_file.h"
#include "test/runtime/fixture.h"

using namespace nibblet;
using namespace nibblet::test;

namespace {

/// A source that is as slow as a disk, and tells what was asked of it.
class Disk : public ByteSource {
 public:
  const std::string& path() const override { return path_; }
  void check(size_t, size_t) const override {}
  const uint8_t* range(const Execution&, size_t, size_t, std::vector<uint8_t>&) const override {
    return nullptr;
  }
  int read(size_t, size_t bytes, uint8_t* to) const noexcept override {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    std::memset(to, 1, bytes);
    return 0;
  }
  void will_read(size_t offset, size_t bytes) const noexcept override {
    std::lock_guard lock(mutex);
    asked.emplace_back(offset, bytes);
  }
  void release(size_t, size_t) const override {}

  mutable std::mutex mutex;
  mutable std::vector<std::pair<size_t, size_t>> asked;

 private:
  const std::string path_ = "disk";
};

/// On the engine thread, as every use of the pool.
std::optional<Error> run(FileReads& reads, int threads) {
  auto stream = open_stream(threads);
  stream->enqueue(call([&](const Execution& execution) { reads.run(execution); }));
  return sync(*stream).error;
}

FileTensor tensor_in(const TemporaryFile& file, DType dtype, size_t offset) {
  return {std::make_shared<MappedFile>(file.path()), offset, dtype, "tensor"};
}

}  // namespace

TEST(file_reads_split_among_threads) {
  Random random(11);
  const std::vector<float> values = random.normals(300000);
  TemporaryFile file(std::string(1, 'x').append(bytes_of(values)));
  const FileTensor tensor = tensor_in(file, DType::f32, 1);
  for (int threads : {1, 2, 5}) {
    // The tensor in three parts, the last first, each at its place.
    std::vector<float> to(values.size(), -1.0f);
    FileReads reads;
    for (const auto& [first, count] : {std::pair<size_t, size_t>{200000, 100000}, {0, 1}, {1, 199999}})
      reads.add({&tensor, first, count, reinterpret_cast<uint8_t*>(to.data() + first)});
    CHECK(!run(reads, threads));
    CHECK(to == values);
  }
  FileReads nothing;
  CHECK(!run(nothing, 2));
}

TEST(file_reads_widen_in_place) {
  std::vector<uint16_t> narrow(400001);
  for (size_t i = 0; i < narrow.size(); ++i) narrow[i] = bf16_from_float(float(i % 251) - 100);
  TemporaryFile file(std::string(3, 'x').append(bytes_of(narrow)));
  const FileTensor tensor = tensor_in(file, DType::bf16, 3);
  // What lies behind stays.
  std::vector<float> to(narrow.size() + 1, -7.0f);
  FileReads reads;
  reads.add({&tensor, 0, narrow.size(), reinterpret_cast<uint8_t*>(to.data()), true});
  CHECK(!run(reads, 3));
  for (size_t i = 0; i < narrow.size(); ++i) {
    if (to[i] != bf16_to_float(narrow[i])) return CHECK_EQ(to[i], bf16_to_float(narrow[i]));
  }
  CHECK_EQ(to.back(), -7.0f);
}

TEST(file_reads_report_the_first_fault) {
  std::vector<uint8_t> bytes(1 << 20, 0x38);
  bytes[700000] = 0x7f;
  bytes[300000] = 0xff;
  TemporaryFile file(bytes_of(bytes));
  const FileTensor tensor = tensor_in(file, DType::e4m3, 0);
  std::vector<uint8_t> to(bytes.size());
  const auto check = [&](FileReads::Check kind, const char* index) {
    for (int round = 0; round < 5; ++round) {
      FileReads reads;
      reads.add({&tensor, 0, bytes.size(), to.data(), false, kind});
      CHECK_ERROR("BAD_FORMAT", run(reads, 4), file.path(), std::string("at index ") + index + ";");
    }
  };
  check(FileReads::Check::nan, "300000");
  bytes[300000] = 0xb8;
  std::ofstream(file.path(), std::ios::binary) << bytes_of(bytes);
  check(FileReads::Check::nan, "700000");
  // Negative: a fault of a scale alone.
  check(FileReads::Check::block_scale, "300000");
  FileReads reads;
  reads.add({&tensor, 0, bytes.size(), to.data()});
  CHECK(!run(reads, 4));
  // Cut short behind the fault, and before it.
  std::filesystem::resize_file(file.path(), 800000);
  check(FileReads::Check::nan, "700000");
  std::filesystem::resize_file(file.path(), 100000);
  FileReads short_reads;
  short_reads.add({&tensor, 0, bytes.size(), to.data(), false, FileReads::Check::nan});
  CHECK_ERROR("BAD_FORMAT", run(short_reads, 4), file.path(), "cut short", "download it again");
}

TEST(file_reads_ask_a_disk_ahead) {
  const auto disk = std::make_shared<Disk>();
  const FileTensor tensor{disk, 100, DType::bf16, "tensor"};
  std::vector<uint8_t> to(1 << 20);
  FileReads reads;
  reads.add({&tensor, 0, to.size() / 2, to.data()});
  reads.will_read(tensor, to.size() / 2, (size_t{5} << 19) / 2);
  CHECK(!run(reads, 2));
  CHECK(reads.from_disk());
  std::sort(disk->asked.begin(), disk->asked.end());
  const std::vector<std::pair<size_t, size_t>> expected = {
      {100 + (1 << 20), 1 << 20}, {100 + (2 << 20), 1 << 20}, {100 + (3 << 20), 1 << 19}};
  CHECK(disk->asked == expected);
}
