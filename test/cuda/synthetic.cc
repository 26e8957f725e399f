#include <memory>

#include "kernels/synthetic/cuda.h"
#include "test/cuda/device.h"

namespace nibblet::test {
namespace {

struct Kind {
  Draw draw;
  bool alternate;
  const char* name;
};
constexpr Kind kKinds[] = {{Draw::pairs, false, "pairs"},   {Draw::bytes, false, "bytes"},
                           {Draw::halves, false, "halves"}, {Draw::halves, true, "halves, alternating"},
                           {Draw::words, false, "words"},   {Draw::words, true, "words, alternating"}};

std::vector<uint8_t> random_table(Draw draw) {
  Random random(uint64_t(draw) + 7);
  std::vector<uint8_t> entries(draw_entries(draw) * draw_entry_bytes(draw));
  for (uint8_t& entry : entries) entry = uint8_t(random.bits());
  return entries;
}

class Drawing {
 public:
  explicit Drawing(const Kind& kind, size_t table_offset = 0)
      : kind_(kind),
        entries_(random_table(kind.draw)),
        offset_(table_offset),
        table_(entries_.size() + table_offset) {
    std::vector<uint8_t> shifted(table_offset);
    shifted.insert(shifted.end(), entries_.begin(), entries_.end());
    table_.write(shifted.data());
  }

  /// Whether the bytes [first, first + bytes) of the region are those of the CPU, at any distance from an aligned address.
  bool matches(size_t first, size_t bytes, size_t shift) const {
    constexpr uint64_t kSeed = 0xfedcba9876543210u;
    std::vector<uint8_t> expected(shift + bytes + 16, 0xff);
    draw({kind_.draw, kind_.alternate, kSeed, entries_.data(), first, bytes, expected.data() + shift}, 0, 0,
         1);
    const DeviceArray<uint8_t> out(expected.size());
    check_cuda(draw_cuda({kind_.draw, kind_.alternate, kSeed, table_.data() + offset_, first, bytes,
                          out.data() + shift},
                         cuda_target()),
               "draw_cuda");
    return out.read() == expected && out.guards_intact();
  }

 private:
  Kind kind_;
  std::vector<uint8_t> entries_;
  size_t offset_;
  DeviceArray<uint8_t> table_;
};

}  // namespace

TEST(cuda_synthetic_draws_the_bytes_of_the_cpu) {
  for (const Kind& kind : kKinds) {
    const Drawing drawing(kind);
    for (size_t first : {0, 1, 3, 16, 31, 4096, 4099}) {
      for (size_t bytes : {0, 1, 5, 16, 33, 500}) {
        for (size_t shift : {0, 1, 4, 8, 15}) CHECK(drawing.matches(first, bytes, shift));
      }
    }
    // More than one turn of the blocks, and an offset beyond 32 bits.
    CHECK(drawing.matches(0, 150000, 0));
    CHECK(drawing.matches((size_t{5} << 32) + 8, 70001, 8));
    if (on_gpu()) {
      CHECK(drawing.matches(0, (size_t{32} << 20) + 5, 0));
      CHECK(drawing.matches(3, size_t{4} << 20, 3));
    }
  }
}

TEST(cuda_synthetic_table_anywhere) {
  for (const Kind& kind : kKinds) {
    CHECK(Drawing(kind, draw_entry_bytes(kind.draw)).matches(5, 3000, 5));
  }
}

TEST(cuda_bench_synthetic) {
  if (!benchmarks_asked_for()) return;
  const DeviceArray<uint8_t> out(size_t{1} << 30);
  for (const Kind& kind : kKinds) {
    const DeviceArray<uint8_t> table(random_table(kind.draw));
    for (size_t bytes : {out.bytes(), size_t{2494464}}) {
      const double time = graph_microseconds(4, 5, [&](int i) {
        check_cuda(draw_cuda({kind.draw, kind.alternate, uint64_t(i), table.data(), 0, bytes, out.data()},
                             cuda_target()),
                   "draw_cuda");
      });
      std::printf("    %s, %7.1f MB: %8.1f us, %5.0f GB/s\n", kind.name, double(bytes) / 1e6, time,
                  double(bytes) / time / 1e3);
    }
  }
}

}  // namespace nibblet::test
