#include <numeric>

#include "kernels/roofline/read.h"
#include "test/kernels/batch.h"
#include "test/kernels/inputs.h"

namespace nibblet::test {

TEST(roofline_reads_every_word_once) {
  // Words that differ, so that one missed or read twice changes the sum.
  constexpr size_t kWords = 64 * 37;
  alignas(64) static uint64_t words[kWords];
  uint64_t expected = 0;
  for (size_t i = 0; i < kWords; ++i) expected += words[i] = (i + 1) * 0x9E3779B97F4A7C15u;
  for_each_cpu_variant([&] {
    for (int workers : {1, 2, 5, 64}) {
      std::vector<uint64_t> sums(size_t(workers), 1);
      for (int worker = 0; worker < workers; ++worker)
        read_words({words, kWords, sums.data()}, 0, worker, workers);
      CHECK_EQ(std::accumulate(sums.begin(), sums.end(), uint64_t{0}), expected);
    }
  });
}

}  // namespace nibblet::test
