#include <numeric>

#include "kernels/roofline/cuda.h"
#include "test/cuda/device.h"

namespace nibblet::test {
namespace {

uint64_t read_all(const void* data, size_t bytes) {
  const DeviceArray<uint64_t> sums(size_t(read_roofline_sums(cuda_target())));
  check_cuda(read_roofline_cuda(data, bytes, sums.data(), cuda_target()), "read_roofline_cuda");
  const std::vector<uint64_t> parts = sums.read();
  CHECK(sums.guards_intact());
  return std::accumulate(parts.begin(), parts.end(), uint64_t{0});
}

}  // namespace

TEST(cuda_roofline_reads_every_word_once) {
  // Words that differ, so that one missed or read twice changes the sum.
  const size_t largest = on_gpu() ? size_t{40} << 20 : 150000;
  std::vector<uint64_t> words(largest);
  for (size_t i = 0; i < words.size(); ++i) words[i] = (i + 1) * 0x9E3779B97F4A7C15u;
  const DeviceArray<uint64_t> data(words);
  for (size_t count : {size_t{0}, size_t{2}, size_t{2046}, size_t{2048}, size_t{65538}, largest}) {
    CHECK_EQ(read_all(data.data(), count * 8),
             std::accumulate(words.begin(), words.begin() + count, uint64_t{0}));
  }
  CHECK_EQ(read_all(data.data() + 2, 160),
           std::accumulate(words.begin() + 2, words.begin() + 22, uint64_t{0}));
}

TEST(cuda_roofline_refuses_what_is_not_aligned) {
  const DeviceArray<uint64_t> data(64), sums(size_t(read_roofline_sums(cuda_target())));
  CHECK_EQ(int(read_roofline_cuda(data.data(), 24, sums.data(), cuda_target())), int(cudaErrorInvalidValue));
  CHECK_EQ(int(read_roofline_cuda(data.data() + 1, 16, sums.data(), cuda_target())),
           int(cudaErrorInvalidValue));
}

TEST(cuda_bench_roofline) {
  if (!benchmarks_asked_for()) return;
  const DeviceArray<uint64_t> sums(size_t(read_roofline_sums(cuda_target())));
  const size_t bytes = size_t{4} << 30;
  const DeviceArray<uint8_t> data(bytes, 1);
  for (size_t part : {bytes, bytes / 4, size_t{64} << 20, size_t{16} << 20}) {
    const int copies = int(std::min<size_t>(bytes / part, 16));
    const double time = graph_microseconds(copies, 10, [&](int i) {
      check_cuda(read_roofline_cuda(data.data() + size_t(i) * part, part, sums.data(), cuda_target()),
                 "read_roofline_cuda");
    });
    std::printf("    %5zu MB: %8.1f us, %5.0f GB/s, %3.0f %% of 3080\n", part >> 20, time,
                double(part) / time / 1e3, double(part) / time / 1e3 / 30.80);
  }
}

}  // namespace nibblet::test
