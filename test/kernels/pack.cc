#include <algorithm>
#include <cstring>

#include "test/kernels/harness.h"
#include "test/kernels/weights.h"

using namespace nibblet;
using namespace nibblet::test;

namespace {

struct Shape {
  int32_t out;
  int32_t in;
};

/// Layout::fragments too, which no CPU kernel reads.
std::vector<Layout> every_layout(Format format) {
  std::vector<Layout> all = layouts(format);
  if (format != Format::f32) all.push_back(Layout::fragments);
  return all;
}

/// in: multiples of 16, and tails where the format allows them.
std::vector<Shape> shapes(Format format) {
  std::vector<Shape> all = {{1, 16}, {15, 48}, {16, 32}, {17, 64}, {40, 1856}};
  if (format == Format::nvfp4) all.insert(all.end(), {{20, 96}, {128, 32}, {129, 48}, {384, 96}});
  if (format != Format::nvfp4) all.insert(all.end(), {{5, 24}, {18, 1}, {33, 17}, {7, 31}});
  return all;
}

void check_values(const RandomWeight& source, const WeightView& view) {
  for (int32_t n = 0; n < source.out; n++) {
    for (int32_t k = 0; k < source.in; k++)
      CHECK_EQ(double(unpack_element(view, 0, n, k)), source.value(n, k));
  }
}

}  // namespace

TEST(pack_round_trip) {
  for (Format format : kFormats) {
    for (Layout layout : every_layout(format)) {
      for (Shape shape : shapes(format)) {
        RandomWeight source(format, shape.out, shape.in, 1);
        PackedWeight packed(source, layout);
        check_values(source, packed.view);
        CHECK(packed.bytes.guards_intact());
        CHECK_EQ(packed.bytes.size() % 64, size_t(0));
      }
    }
  }
}

TEST(pack_layout_is_as_documented) {
  // weight.h, spelled out: lane 2r + j of 16 bits.
  RandomWeight source(Format::nvfp4, 16, 32, 2);
  PackedWeight packed(source, Layout::panels);
  for (int32_t block = 0; block < 2; block++) {
    const uint8_t* at = packed.bytes.data() + block * 144;
    for (int32_t r = 0; r < 16; r++) {
      for (int32_t v = 0; v < 2; v++) {
        for (int32_t j = 0; j < 2; j++) {
          int lane = at[v * 64 + (2 * r + j) * 2] | at[v * 64 + (2 * r + j) * 2 + 1] << 8;
          for (int32_t n = 0; n < 4; n++) {
            int32_t k = block * 16 + 8 * v + 2 * n + j;
            int code = source.elements[size_t(r * 16 + k / 2)] >> (k % 2 * 4) & 15;
            CHECK_EQ(lane >> (4 * n) & 15, code);
          }
        }
      }
      CHECK_EQ(at[128 + r], source.block_scales[size_t(r * 2 + block)]);
    }
  }
  RandomWeight bytes(Format::e4m3, 16, 8, 3);
  PackedWeight panel(bytes, Layout::panels);
  for (int32_t r = 0; r < 16; r++) {
    for (int32_t k = 0; k < 8; k += 4) {
      for (int32_t j = 0; j < 2; j++) {
        const uint8_t* lane = panel.bytes.data() + k / 4 * 64 + (2 * r + j) * 2;
        CHECK_EQ(lane[0], bytes.elements[size_t(r * 8 + k + j)]);
        CHECK_EQ(lane[1], bytes.elements[size_t(r * 8 + k + 2 + j)]);
      }
    }
  }
}

TEST(pack_columns_are_as_documented) {
  RandomWeight source(Format::nvfp4, 140, 48, 2);
  PackedWeight packed(source, Layout::columns);
  constexpr int32_t kRows = 256;
  CHECK_EQ(packed.bytes.size(), size_t(3 * 9 * kRows));
  for (int32_t n = 0; n < 140; n++) {
    for (int32_t k = 0; k < 48; k++) {
      const uint8_t* lane =
          packed.bytes.data() + k / 16 * 9 * kRows + k % 16 * kRows / 2 + n / 128 * 64 + n % 16 * 4;
      uint32_t bits;
      std::memcpy(&bits, lane, 4);
      int code = source.elements[size_t(n * 24 + k / 2)] >> (k % 2 * 4) & 15;
      CHECK_EQ(int(bits >> (n % 128 / 16 * 4) & 15), code);
    }
    for (int32_t block = 0; block < 3; block++) {
      CHECK_EQ(packed.bytes.data()[block * 9 * kRows + 8 * kRows + n],
               source.block_scales[size_t(n * 3 + block)]);
    }
  }
}

TEST(pack_fragments_are_as_documented) {
  // Registers a0 to a3 of every lane and mma, against where mma_bf16 wants rows and slots.
  RandomWeight codes(Format::nvfp4, 32, 256, 9);
  PackedWeight packed(codes, Layout::fragments);
  CHECK_EQ(packed.bytes.size(), size_t(2 * 2 * 1152));
  for (int32_t tile = 0; tile < 2; tile++) {
    for (int32_t unit = 0; unit < 2; unit++) {
      const uint8_t* at = packed.bytes.data() + (tile * 2 + unit) * 1152;
      for (int32_t lane = 0; lane < 32; lane++) {
        const int32_t g = lane / 4, t = lane % 4;
        for (int32_t i = 0; i < 8; i++) {
          uint32_t word;
          std::memcpy(&word, at + i / 4 * 512 + lane * 16 + i % 4 * 4, 4);
          const uint64_t wide = uint64_t{word & 0x6c006c00} * 0x104200;
          const uint32_t registers[] = {word, word << 3, word << 6, uint32_t(wide | wide >> 32)};
          for (int32_t j = 0; j < 4; j++) {
            for (int32_t e = 0; e < 2; e++) {
              const int32_t row = tile * 16 + g + j % 2 * 8;
              const int32_t k = unit * 128 + 32 * t + 4 * i + j / 2 * 2 + e;
              const double value = bf16_value(uint16_t((registers[j] & 0x81c081c0) >> (16 * e)));
              const int code = codes.elements[size_t(row * 128 + k / 2)] >> (k % 2 * 4) & 15;
              CHECK_EQ(std::ldexp(value, 126), e2m1_value(code));
            }
          }
        }
        for (int32_t j = 0; j < 4; j++) {
          const int32_t row = tile * 16 + g + j / 2 * 8, block = unit * 8 + 2 * t + j % 2;
          CHECK_EQ(at[1024 + lane * 4 + j], codes.block_scales[size_t(row * 16 + block)]);
        }
      }
    }
  }
  RandomWeight halves(Format::bf16, 16, 32, 10), bytes(Format::e4m3, 16, 32, 11);
  PackedWeight packed_halves(halves, Layout::fragments), packed_bytes(bytes, Layout::fragments);
  for (int32_t lane = 0; lane < 32; lane++) {
    for (int32_t i = 0; i < 2; i++) {
      for (int32_t j = 0; j < 4; j++) {
        for (int32_t e = 0; e < 2; e++) {
          const int32_t row = lane / 4 + j % 2 * 8, k = lane % 4 * 8 + i * 4 + j / 2 * 2 + e;
          const uint8_t* half = packed_halves.bytes.data() + i * 512 + lane * 16 + j * 4 + e * 2;
          CHECK(std::equal(half, half + 2, &halves.elements[size_t(row * 32 + k) * 2]));
          CHECK_EQ(packed_bytes.bytes.data()[lane * 16 + (i * 2 + j / 2) * 4 + e * 2 + j % 2],
                   bytes.elements[size_t(row * 32 + k)]);
        }
      }
    }
  }
}

TEST(pack_worker_counts) {
  for (Format format : kFormats) {
    for (Layout layout : every_layout(format)) {
      RandomWeight source(format, 300, 48, 4);
      PackedWeight one(source, layout, 1);
      for (int workers : {2, 3, 7}) {
        PackedWeight many(source, layout, workers);
        CHECK(std::equal(one.bytes.data(), one.bytes.data() + one.bytes.size(), many.bytes.data()));
      }
    }
  }
}

TEST(pack_parts_from_unaligned_sources) {
  // Tensors fused into one matrix at rows that are no multiple of a panel, each source at an odd address.
  for (Format format : kFormats) {
    for (Layout layout : every_layout(format)) {
      constexpr int32_t kParts[] = {10, 21, 6, 101, 248, 1};
      constexpr int32_t kOut = 387;
      int32_t in = 48;
      RandomWeight whole(format, kOut, in, 5);
      PackedWeight expected(whole, layout);
      GuardedBytes matrix(expected.bytes.size());
      size_t row = whole.elements.size() / kOut, scale_row = whole.block_scales.size() / kOut;
      int32_t first = 0;
      for (int32_t rows : kParts) {
        std::vector<uint8_t> elements(size_t(rows) * row + 1), scales(size_t(rows) * scale_row + 1);
        std::copy_n(whole.elements.begin() + int64_t(size_t(first) * row), size_t(rows) * row,
                    elements.begin() + 1);
        std::copy_n(whole.block_scales.begin() + int64_t(size_t(first) * scale_row), size_t(rows) * scale_row,
                    scales.begin() + 1);
        std::atomic<int64_t> bad{0};
        PackArgs args = {format,        layout, kOut, in, first, rows, elements.data() + 1, scales.data() + 1,
                         matrix.data(), &bad};
        for (int worker = 0; worker < 3; worker++) pack(args, 0, worker, 3);
        CHECK_EQ(bad.load(), int64_t(0));
        first += rows;
      }
      CHECK(std::equal(matrix.data(), matrix.data() + matrix.size(), expected.bytes.data()));
      CHECK(matrix.guards_intact());
    }
  }
}

TEST(pack_padding_stays_zero) {
  for (Format format : kFormats) {
    for (Layout layout : every_layout(format)) {
      if (layout == Layout::rows) continue;
      int32_t in = format == Format::nvfp4 ? 32 : 24;
      RandomWeight source(format, 17, in, 6);
      PackedWeight packed(source, layout);
      WeightView padded = packed.view;
      for (int32_t n = 0; n < (layout == Layout::columns ? 128 : 32); n++) {
        for (int32_t k = 0; k < 32; k++) {
          if (n >= 17 || k >= in) CHECK_EQ(unpack_element(padded, 0, n, k), 0.0f);
        }
      }
    }
  }
}

TEST(pack_reports_bad_scales) {
  for (Layout layout : every_layout(Format::nvfp4)) {
    for (uint8_t bad_byte : {0x7f, 0xff, 0x81, 0x80}) {
      for (size_t index : {size_t(0), size_t(37), size_t(40 * 3 - 1)}) {
        RandomWeight source(Format::nvfp4, 40, 48, 7);
        source.block_scales[index] = bad_byte;
        std::vector<uint8_t> matrix(packed_matrix_bytes(Format::nvfp4, layout, 40, 48));
        std::atomic<int64_t> bad{0};
        PackArgs args = {
            Format::nvfp4, layout, 40, 48, 0, 40, source.elements.data(), source.block_scales.data(),
            matrix.data(), &bad};
        for (int worker = 0; worker < 2; worker++) pack(args, 0, worker, 2);
        CHECK_EQ(bad.load(), int64_t(index) + 1);
      }
    }
    if (layout == Layout::columns) continue;
    for (uint8_t bad_byte : {0x7f, 0xff}) {
      RandomWeight source(Format::e4m3, 20, 24, 8);
      source.elements[301] = bad_byte;
      std::vector<uint8_t> matrix(packed_matrix_bytes(Format::e4m3, layout, 20, 24));
      std::atomic<int64_t> bad{0};
      PackArgs args = {Format::e4m3, layout,        20,  24, 0, 20, source.elements.data(),
                       nullptr,      matrix.data(), &bad};
      pack(args, 0, 0, 1);
      CHECK_EQ(bad.load(), int64_t(302));
    }
  }
}
