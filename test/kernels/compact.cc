#include "test/kernels/compact_rows.h"
#include "test/kernels/linear_call.h"

using namespace nibblet;
using namespace nibblet::test;

namespace {

RandomWeight random_bits(int32_t out, int32_t in) {
  RandomWeight rows(Format::bf16, out, in, 1);
  std::mt19937 random(2);
  for (uint8_t& byte : rows.elements) byte = uint8_t(random());
  return rows;
}

/// Fewest exceptions that a base leaves in a row, and the lowest such base.
std::pair<int, uint32_t> best_base(RandomWeight& rows, int32_t n) {
  std::pair<int, uint32_t> best = {rows.in + 1, 0};
  for (uint32_t base = 0; base <= kCompactLargestBase; base++) {
    int exceptions = 0;
    for (int32_t k = 0; k < rows.in; k++) exceptions += is_compact_exception(element(rows, n, k), base);
    if (exceptions < best.first) best = {exceptions, base};
  }
  return best;
}

void check_product(LinearCall& call, int32_t m, int32_t n) {
  const auto [exact, bound] = call.product(m, n);
  CHECK_NEAR(call.y_at(m, n), exact, bound);
}

}  // namespace

TEST(compact_panels_keep_every_bit) {
  for (const auto& [out, in] : {std::pair(1, 1), std::pair(16, 16), std::pair(37, 300), std::pair(20, 700)}) {
    for (RandomWeight rows : {random_bits(out, in), awkward_rows(out, in), normal_rows(out, in)}) {
      const CompactPanels compact(rows);
      CHECK(compact.bytes.guards_intact());
      for (int32_t n = 0; n < out; n++) {
        for (int32_t k = 0; k < in; k++) {
          CHECK_EQ(compact_panel_element(compact.view.data, out, in, n, k), element(rows, n, k));
          const double value = unpack_element(compact.view, 0, n, k),
                       wanted = bf16_value(element(rows, n, k));
          CHECK(std::memcmp(&value, &wanted, sizeof value) == 0);
        }
      }
    }
  }
}

TEST(compact_panels_have_the_best_bases) {
  for (RandomWeight rows : {random_bits(37, 100), awkward_rows(85, 300), normal_rows(33, 2688)}) {
    const CompactPanels compact(rows);
    uint64_t all = 0;
    for (size_t p = 0; p < compact.panels.size(); p++) {
      const CompactPanel& panel = compact.panels[p];
      CHECK_EQ(panel.first, all);
      uint32_t count = 0;
      for (int32_t r = 0; r < kPanelRows && int32_t(p) * kPanelRows + r < rows.out; r++) {
        const auto [exceptions, base] = best_base(rows, int32_t(p) * kPanelRows + r);
        CHECK_EQ(uint32_t(panel.bases[r]), base);
        count += uint32_t(exceptions);
      }
      CHECK_EQ(panel.count, count);
      all += count;
    }
    CHECK_EQ(compact.exceptions, all);
  }
}

TEST(compact_panels_are_the_same_with_any_workers_and_vectors) {
  RandomWeight rows = awkward_rows(85, 300);
  CompactPanels once(rows);
  for_each_cpu_variant([&] {
    for (const int workers : {1, 2, 5, 9}) {
      CompactPanels other(rows, workers);
      CHECK(once.bytes.size() == other.bytes.size() &&
            std::memcmp(once.bytes.data(), other.bytes.data(), once.bytes.size()) == 0);
    }
  });
}

TEST(compact_panels_take_three_quarters) {
  const RandomWeight rows = normal_rows(2688, 2688);
  const CompactPanels compact(rows);
  CHECK(compact.exceptions > 0);
  CHECK(compact.bytes.size() * 1000 < compact.plain.bytes.size() * 752);
}

TEST(linear_compact_product) {
  // Inputs that are no multiple of 16, a panel that is not whole, rows normed, x in float32 and bf16.
  const RandomWeight rows = awkward_rows(85, 300);
  const CompactPanels compact(rows);
  for_each_cpu_variant([&] {
    for (const int32_t tokens : {1, 2, 4, 5, 16, 17, 40, 100}) {
      for (const bool bf16 : {false, true}) {
        LinearCall call(Format::bf16, Layout::panels, 85, 300, tokens);
        call.source = rows;
        call.args.weight = compact.view;
        if (bf16) {
          call.args.x = call.x_bf16.data();
          call.args.x_type = DType::bf16;
        } else {
          call.args.norm = call.norm.data();
        }
        call.run();
        for (int32_t m = 0; m < tokens; m++) {
          for (int32_t n = 0; n < 85; n++) check_product(call, m, n);
        }
      }
    }
  });
}

TEST(linear_compact_epilogues_and_selected_rows) {
  const RandomWeight rows = awkward_rows(85, 300);
  const CompactPanels compact(rows);
  constexpr LogitsRow kRows[] = {{8, 0}, {0, 1}, {5, 2}, {5, 3}};
  for_each_cpu_variant([&] {
    LinearCall all(Format::bf16, Layout::panels, 85, 300, 9), some(Format::bf16, Layout::panels, 85, 300, 9);
    all.args.weight = some.args.weight = compact.view;
    all.run();
    some.args.rows = kRows;
    some.args.count = 4;
    some.args.bias = some.bias.data();
    some.args.activation = Activation::relu2;
    some.args.add = true;
    std::fill_n(some.y.as<float>(), 4 * 85, 2.0f);
    some.run();
    for (int32_t i = 0; i < 4; i++) {
      for (int32_t n = 0; n < 85; n++) {
        const float value = all.y_at(kRows[i].token, n) + some.bias[size_t(n)];
        CHECK_EQ(some.y_at(i, n), 2.0f + (value > 0 ? value * value : 0.0f));
      }
    }
  });
}

TEST(linear_compact_range_of_inputs) {
  // What inputs are multiplied by leaves products of 2^-63 to 2^65 what they are; beyond, x overflows, and comes out as no number.
  const RandomWeight rows = normal_rows(20, 64);
  const CompactPanels compact(rows);
  for_each_cpu_variant([&] {
    for (const float size : {0x1p-60f, 1.0f, 0x1p60f}) {
      LinearCall plain(Format::bf16, Layout::panels, 20, 64, 2),
          call(Format::bf16, Layout::panels, 20, 64, 2);
      plain.source = call.source = rows;
      plain.args.weight = compact.plain.view;
      call.args.weight = compact.view;
      for (LinearCall* each : {&plain, &call}) {
        for (float& x : each->x) x *= size;
        each->run();
      }
      for (int32_t n = 0; n < 20; n++) {
        check_product(call, 0, n);
        CHECK_NEAR(call.y_at(1, n), plain.y_at(1, n), 2 * call.product(1, n).second);
      }
    }
    LinearCall large(Format::bf16, Layout::panels, 20, 64, 2);
    large.args.weight = compact.view;
    large.x[3] = 0x1p65f;
    large.run();
    for (int32_t n = 0; n < 20; n++)
      CHECK(!std::isfinite(large.y_at(0, n)) && std::isfinite(large.y_at(1, n)));
  });
}

TEST(linear_compact_batch_and_workers_do_not_change_bits) {
  const RandomWeight rows = awkward_rows(85, 300);
  const CompactPanels compact(rows);
  for_each_cpu_variant([&] {
    const auto run = [&](int32_t first, int32_t tokens, int workers) {
      LinearCall call(Format::bf16, Layout::panels, 85, 300, 33);
      call.args.weight = compact.view;
      call.args.count = tokens;
      call.args.x = &call.x[size_t(first) * 300];
      call.run(workers);
      return std::vector<float>(call.y.as<float>(), call.y.as<float>() + tokens * 85);
    };
    const std::vector<float> batch = run(0, 33, 1);
    for (const int workers : {2, 3, 7}) CHECK(run(0, 33, workers) == batch);
    for (const int32_t m : {0, 7, 32}) {
      CHECK(run(m, 1, 2) == std::vector<float>(batch.begin() + m * 85, batch.begin() + (m + 1) * 85));
    }
  });
}

TEST(linear_compact_is_the_plain_product_where_nothing_is_an_exception) {
  // A power of two comes out of every addition.
  const RandomWeight rows(Format::bf16, 50, 208, 3);
  const CompactPanels compact(rows);
  RandomWeight narrow = rows;
  for (int32_t n = 0; n < 50; n++) {
    for (int32_t k = 0; k < 208; k++) element(narrow, n, k) |= 1 << 7;
  }
  const CompactPanels whole(narrow);
  CHECK_EQ(whole.exceptions, uint64_t(0));
  CHECK(compact.exceptions > 0);
  for_each_cpu_variant([&] {
    LinearCall plain(Format::bf16, Layout::panels, 50, 208, 9),
        call(Format::bf16, Layout::panels, 50, 208, 9);
    plain.args.weight = whole.plain.view;
    call.args.weight = whole.view;
    plain.run();
    call.run();
    CHECK(std::memcmp(plain.y.data(), call.y.data(), plain.y.size()) == 0);
  });
}

TEST(linear_compact_every_exponent) {
  // Inputs 0 ... 1 ... 0: an output is one element, exactly, wherever its row's window lies, and infinite or NaN if it is.
  constexpr int32_t kOut = 272, kIn = 40, kAt = 29;
  RandomWeight source(Format::bf16, kOut, kIn, 3);
  std::fill(source.elements.begin(), source.elements.end(), uint8_t(0));
  std::fill(source.row_scales.begin(), source.row_scales.end(), 1.0f);
  for (int32_t n = 0; n < kOut; n++)
    element(source, n, kAt) = uint16_t((n % 2) << 15 | (n % 256) << 7 | (n < 256 ? 0x35 : 0));
  const CompactPanels compact(source);
  for_each_cpu_variant([&] {
    for (const int32_t count : {1, 2, 20}) {
      LinearCall call(Format::bf16, Layout::panels, kOut, kIn, count);
      call.args.weight = compact.view;
      call.args.weight.row_scales = source.row_scales.data();
      std::fill(call.x.begin(), call.x.end(), 0.0f);
      for (int32_t m = 0; m < count; m++) call.x[size_t(m * kIn + kAt)] = 1;
      call.run();
      for (int32_t m = 0; m < count; m++) {
        for (int32_t n = 0; n < kOut; n++) {
          const double wanted = source.value(n, kAt);
          if (std::isnan(wanted)) {
            CHECK(std::isnan(call.y_at(m, n)));
          } else {
            CHECK_EQ(double(call.y_at(m, n)), wanted);
          }
        }
      }
    }
  });
}

TEST(linear_compact_infinities_and_nan_do_not_become_finite) {
  const RandomWeight rows = awkward_rows(33, 48);
  const CompactPanels compact(rows);
  for_each_cpu_variant([&] {
    for (const float value : {INFINITY, -INFINITY, NAN}) {
      LinearCall call(Format::bf16, Layout::panels, 33, 48, 3);
      call.args.weight = compact.view;
      call.x[48 + 20] = value;
      call.run();
      for (int32_t n = 0; n < 33; n++) {
        CHECK(!std::isfinite(call.y_at(1, n)));
        CHECK(std::isfinite(call.y_at(0, n)) && std::isfinite(call.y_at(2, n)));
      }
    }
  });
}
