#include "kernels/roofline/read.h"

#include "kernels/numerics/partition.h"
#include "kernels/simd/cpu.h"

namespace nibblet {
namespace {

// Words of one round: eight vectors of 64 bytes, so that several loads are always under way.
constexpr size_t kRound = 64;

using Words8 = uint64_t __attribute__((vector_size(64)));
using Words4 = uint64_t __attribute__((vector_size(32)));
using Words2 = uint64_t __attribute__((vector_size(16)));

template <class Words>
[[gnu::always_inline]] inline uint64_t sum_words(const uint64_t* words, size_t rounds) {
  constexpr size_t kLanes = sizeof(Words) / sizeof(uint64_t);
  Words sums[8] = {};
  for (size_t i = 0; i < rounds; ++i, words += kRound) {
    const Words* vectors = reinterpret_cast<const Words*>(words);
    for (size_t j = 0; j < kRound / kLanes; ++j) sums[j % 8] += vectors[j];
  }
  uint64_t total = 0;
  for (const Words& sum : sums) {
    for (size_t lane = 0; lane < kLanes; ++lane) total += sum[lane];
  }
  return total;
}

uint64_t sum_portable(const uint64_t* words, size_t rounds) { return sum_words<Words2>(words, rounds); }
#ifdef __x86_64__
[[gnu::target("avx2")]] uint64_t sum_avx2(const uint64_t* words, size_t rounds) {
  return sum_words<Words4>(words, rounds);
}
[[gnu::target("avx512f,prefer-vector-width=512")]] uint64_t sum_avx512(const uint64_t* words, size_t rounds) {
  return sum_words<Words8>(words, rounds);
}
#endif

}  // namespace

void read_words(const ReadArgs& args, int, int worker, int workers) {
  const Range rounds = partition(int64_t(args.count / kRound), worker, workers);
  auto* sum = sum_portable;
#ifdef __x86_64__
  if (selected_cpu_variant() >= CpuVariant::avx2) sum = sum_avx2;
  if (selected_cpu_variant() >= CpuVariant::avx512) sum = sum_avx512;
#endif
  args.sums[worker] = sum(args.words + size_t(rounds.first) * kRound, size_t(rounds.last - rounds.first));
}

}  // namespace nibblet
