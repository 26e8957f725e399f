#include "test/cuda/compact.h"

#include <functional>

#include "test/kernels/harness.h"

namespace nibblet::test {
namespace {

using Draw16 = std::function<uint16_t(std::mt19937&, int32_t row)>;

RandomWeight drawn(int32_t out, int32_t in, const Draw16& draw) {
  RandomWeight weight(Format::bf16, out, in, 1);
  std::mt19937 random(uint32_t(out * 31 + in));
  for (int32_t n = 0; n < out; n++) {
    for (int32_t k = 0; k < in; k++) {
      const uint16_t bits = draw(random, n);
      std::memcpy(&weight.elements[(size_t(n) * size_t(in) + size_t(k)) * 2], &bits, sizeof bits);
    }
  }
  return weight;
}

uint16_t element(const RandomWeight& weight, int32_t n, int32_t k) {
  uint16_t bits;
  std::memcpy(&bits, &weight.elements[(size_t(n) * size_t(weight.in) + size_t(k)) * 2], sizeof bits);
  return bits;
}

/// Elements that are in no window, in the order of their inputs, for the best of all windows.
uint32_t fewest_exceptions(const RandomWeight& weight, int32_t n) {
  uint32_t fewest = UINT32_MAX;
  for (int base = 0; base <= 190; base++) {
    uint32_t count = 0;
    for (int32_t k = 0; k < weight.in; k++) {
      const int bits = element(weight, n, k), exponent = bits >> 7 & 0xff;
      count += (bits & 0x7fff) != 0 && (exponent <= base || exponent > base + 15);
    }
    fewest = std::min(fewest, count);
  }
  return fewest;
}

/// Every bit comes back, with as few exceptions as there can be.
void check_matrix(const RandomWeight& weight) {
  const int32_t out = weight.out, in = weight.in;
  const PackedWeight packed(weight, Layout::fragments);
  const std::vector<uint8_t> plain(packed.view.data, packed.view.data + packed.bytes.size());
  const DeviceArray<uint8_t> fragments(plain);
  const DeviceCompact compact(fragments.data(), out, in);
  const std::vector<uint8_t> bytes = compact.matrix->read();
  CHECK(compact.matrix->guards_intact());
  CHECK(compact.rows->guards_intact());
  CHECK(fragments.read() == plain);
  CHECK_EQ(bytes.size() % 64, size_t(0));

  uint64_t exceptions = 0, listed = 0;
  uint32_t most = 0;
  int wrong = 0;
  for (int32_t n = 0; n < out; n++) {
    for (int32_t k = 0; k < in; k++)
      wrong += compact_element(bytes.data(), out, in, n, k) != element(weight, n, k);
    const CompactRow row =
        reinterpret_cast<const CompactRow*>(bytes.data() + compact_rows_offset(out, in))[n];
    CHECK_EQ(row.count(), fewest_exceptions(weight, n));
    CHECK_EQ(uint64_t(row.more), listed);
    exceptions += row.count();
    listed += row.count() > 2 ? row.count() - 2 : 0;
    most = std::max(most, row.count());
    const uint32_t* list =
        reinterpret_cast<const uint32_t*>(bytes.data() + compact_list_offset(out, in)) + row.more;
    int32_t last = -1;
    for (uint32_t i = 0; i < row.count(); i++) {
      const uint32_t exception = i < 2 ? row.first[i] : list[i - 2];
      CHECK(int32_t(exception & 0xffff) > last);
      last = int32_t(exception & 0xffff);
    }
  }
  CHECK_EQ(wrong, 0);
  CHECK_EQ(compact.totals.exceptions, exceptions);
  CHECK_EQ(compact.totals.listed, listed);
  CHECK_EQ(compact.totals.most_in_row, most);
}

}  // namespace

TEST(cuda_compact_restores_every_bit) {
  const Draw16 draws[] = {
      // Any bits at all: NaN, infinities, subnormals.
      [](std::mt19937& random, int32_t) { return uint16_t(random()); },
      // Trained weights.
      [](std::mt19937& random, int32_t) {
        return bf16_bits(std::normal_distribution<double>(0, 0.02)(random));
      },
      // Nothing but zeros of both signs.
      [](std::mt19937& random, int32_t) { return uint16_t(random() & 0x8000); },
      // Subnormals and the smallest normal numbers.
      [](std::mt19937& random, int32_t) { return uint16_t(random() & 0x81ff); },
      // Infinities and NaN alone.
      [](std::mt19937& random, int32_t) { return uint16_t(random() | 0x7f80); },
      // A window of each row's own, its edges and what is just beside it.
      [](std::mt19937& random, int32_t row) {
        const uint32_t bits = uint32_t(random());
        return uint16_t((bits & 0x807f) | ((uint32_t(row) * 6 + (bits >> 16) % 17) & 0xff) << 7);
      },
      // Exactly the 15 exponents of a window, from 1 on and from the last base on.
      [](std::mt19937& random, int32_t row) {
        const uint32_t bits = uint32_t(random());
        return uint16_t((bits & 0x807f) | ((row % 2 ? 1 : 191) + (bits >> 16) % 15) << 7);
      },
  };
  for (const Draw16& draw : draws) {
    for (const auto& [out, in] : {std::pair(1, 1), std::pair(15, 17), std::pair(16, 32), std::pair(17, 31),
                                  std::pair(40, 100), std::pair(50, 272), std::pair(3, 1100)}) {
      check_matrix(drawn(out, in, draw));
    }
  }
}

TEST(cuda_compact_window_holds_its_exponents) {
  // No exceptions at all where a row spans 15 exponents, one an element where it spans more.
  for (const int span : {1, 15, 16}) {
    const RandomWeight weight = drawn(33, 64, [&](std::mt19937& random, int32_t row) {
      const uint32_t bits = uint32_t(random());
      return uint16_t((bits & 0x807f) | (uint32_t(row) + 50 + (bits >> 16) % uint32_t(span)) << 7);
    });
    const PackedWeight packed(weight, Layout::fragments);
    const DeviceArray<uint8_t> fragments(packed.view.data, packed.bytes.size());
    const DeviceCompact compact(fragments.data(), 33, 64);
    CHECK_EQ(compact.totals.exceptions > 0, span > 15);
  }
}

TEST(cuda_compact_many_rows) {
  // More rows than the scan has threads.
  const Draw16 draw = [](std::mt19937& random, int32_t row) {
    return row % 300 == 7 ? uint16_t(random()) : uint16_t((random() & 0x83ff) | 0x3c00);
  };
  check_matrix(drawn(3001, 20, draw));
}

TEST(cuda_compact_refuses_inputs_without_names) {
  CHECK(compact_cuda(nullptr, 16, kCompactMostInputs + 1, nullptr, nullptr, cuda_target()) ==
        cudaErrorInvalidValue);
}

TEST(cuda_compact_real_matrix) {
  if (!on_gpu()) return;
  RandomWeight rows(Format::bf16, 2688, 4096, 1);
  make_normal(rows, 2);
  check_matrix(rows);
}

TEST(cuda_bench_compact) {
  if (!benchmarks_asked_for()) return;
  for (const auto& [out, in] : {std::pair(131072, 2688), std::pair(10304, 2688), std::pair(2688, 4096)}) {
    RandomWeight rows(Format::bf16, 512, in, 1);
    make_normal(rows, 2);
    const DeviceArray<uint8_t> elements(rows.elements);
    DeviceArray<uint8_t> plain(packed_matrix_bytes(Format::bf16, Layout::fragments, out, in), 0);
    for (int32_t first = 0; first < out; first += 512) {
      check_cuda(pack_cuda({Format::bf16, Layout::fragments, out, in, first, std::min(512, out - first),
                            elements.data(), nullptr, plain.data(), nullptr},
                           cuda_target()),
                 "pack_cuda");
    }
    const DeviceCompact compact(plain.data(), out, in);
    const DeviceArray<CompactTotals> totals(1);
    const double survey = graph_microseconds(1, 5, [&](int) {
      check_cuda(
          compact_survey_cuda(plain.data(), out, in, compact.rows->data(), totals.data(), cuda_target()),
          "compact_survey_cuda");
    });
    const double time = graph_microseconds(1, 5, [&](int) {
      check_cuda(
          compact_cuda(plain.data(), out, in, compact.rows->data(), compact.matrix->data(), cuda_target()),
          "compact_cuda");
    });
    std::printf(
        "    [%d, %d]: %.0f us to survey, %.0f us to write %.1f MB for %.1f; %.2g of the elements are "
        "exceptions\n",
        out, in, survey, time, double(compact.matrix->size()) / 1e6, double(plain.size()) / 1e6,
        double(compact.totals.exceptions) / out / in);
  }
}

}  // namespace nibblet::test
