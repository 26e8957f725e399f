#include <algorithm>
#include <memory>

#include "kernels/pack/cuda.h"
#include "test/cuda/device.h"
#include "test/kernels/harness.h"
#include "test/kernels/weights.h"

namespace nibblet::test {
namespace {

/// Rows [first, first + rows) of a tensor, `shift` bytes behind an address that is aligned.
struct DevicePart {
  DeviceArray<uint8_t> elements, scales;
  PackArgs args;

  DevicePart(const RandomWeight& whole, Layout layout, int32_t first, int32_t rows, size_t shift,
             uint8_t* matrix)
      : elements(part(whole.elements, whole.out, first, rows, shift)),
        scales(part(whole.block_scales, whole.out, first, rows, shift)),
        args{whole.format, layout, whole.out, whole.in, first, rows, elements.data() + shift,
             nullptr,      matrix, nullptr} {
    if (whole.format == Format::nvfp4) args.block_scales = scales.data() + shift;
  }

 private:
  static std::vector<uint8_t> part(const std::vector<uint8_t>& bytes, int32_t out, int32_t first,
                                   int32_t rows, size_t shift) {
    const size_t row = bytes.size() / size_t(out);
    std::vector<uint8_t> result(shift);
    result.insert(result.end(), bytes.begin() + int64_t(size_t(first) * row),
                  bytes.begin() + int64_t(size_t(first + rows) * row));
    return result;
  }
};

/// Packs parts of so many rows, one after the other, and compares with what the CPU packs.
void check_parts(Format format, Layout layout, int32_t in, const std::vector<int32_t>& parts, size_t shift) {
  int32_t out = 0;
  for (const int32_t rows : parts) out += rows;
  const RandomWeight whole(format, out, in, 5);
  const PackedWeight expected(whole, layout);
  DeviceArray<uint8_t> matrix(expected.bytes.size(), 0);
  std::vector<std::unique_ptr<DevicePart>> sources;
  int32_t first = 0;
  for (const int32_t rows : parts) {
    sources.push_back(std::make_unique<DevicePart>(whole, layout, first, rows, shift, matrix.data()));
    check_cuda(pack_cuda(sources.back()->args, cuda_target()), "pack_cuda");
    first += rows;
  }
  const std::vector<uint8_t> bytes = matrix.read();
  CHECK(matrix.guards_intact());
  const uint8_t* wanted = expected.view.data;
  if (std::equal(bytes.begin(), bytes.end(), wanted)) return;
  const auto differs = std::mismatch(bytes.begin(), bytes.end(), wanted);
  std::printf("    %s, layout %d, %d inputs, part of %d rows, shift %d: differs from byte %d on\n",
              name_of(format), int(layout), int(in), int(parts[0]), int(shift),
              int(differs.first - bytes.begin()));
  CHECK(false);
}

}  // namespace

TEST(cuda_pack_equals_cpu) {
  for (const Format format : kFormats) {
    for (const Layout layout : gpu_layouts(format)) {
      for (const int32_t out : {1, 8, 15, 16, 17, 40, 128, 129}) {
        for (const int32_t in : {16, 48, 128, 208}) check_parts(format, layout, in, {out}, 0);
        if (format == Format::nvfp4) continue;
        for (const int32_t in : {1, 17, 24, 31}) check_parts(format, layout, in, {out}, 0);
      }
    }
  }
}

TEST(cuda_pack_parts_share_tiles) {
  for (const Format format : kFormats) {
    for (const Layout layout : gpu_layouts(format)) {
      for (const size_t shift : {0, 1, 2, 4, 8}) {
        check_parts(format, layout, 48, {10, 21, 6, 101, 248, 1}, shift);
        check_parts(format, layout, 256, {3, 2, 4, 1, 30}, shift);
      }
    }
  }
}

TEST(cuda_pack_leaves_other_parts) {
  // The middle rows again, into a matrix that is full: the same bytes, so nothing beside them was touched.
  for (const Format format : kFormats) {
    for (const Layout layout : gpu_layouts(format)) {
      const RandomWeight whole(format, 150, 144, 6);
      const PackedWeight expected(whole, layout);
      const std::vector<uint8_t> wanted(expected.view.data, expected.view.data + expected.bytes.size());
      for (const auto& [first, rows] : {std::pair(5, 6), std::pair(13, 20), std::pair(120, 17)}) {
        DeviceArray<uint8_t> matrix(wanted);
        const DevicePart part(whole, layout, first, rows, 0, matrix.data());
        check_cuda(pack_cuda(part.args, cuda_target()), "pack_cuda");
        CHECK(matrix.read() == wanted);
      }
    }
  }
}

TEST(cuda_pack_no_rows) {
  const RandomWeight whole(Format::nvfp4, 16, 16, 6);
  DeviceArray<uint8_t> matrix(2048);
  const DevicePart part(whole, Layout::fragments, 4, 0, 0, matrix.data());
  check_cuda(pack_cuda(part.args, cuda_target()), "pack_cuda");
  CHECK(matrix.read() == std::vector<uint8_t>(2048, 0xff));
}

TEST(cuda_bench_pack) {
  if (!benchmarks_asked_for()) return;
  struct Shape {
    Format format;
    Layout layout;
    int32_t out, in;
  };
  for (const Shape& shape : {Shape{Format::nvfp4, Layout::fragments, 10304, 2688},
                             Shape{Format::nvfp4, Layout::columns, 2688, 1856},
                             Shape{Format::bf16, Layout::fragments, 32768, 2688},
                             Shape{Format::bf16, Layout::rows, 32768, 2688}}) {
    const RandomWeight source(shape.format, 512, shape.in, 1);
    const size_t row = source.elements.size() / 512, scale_row = source.block_scales.size() / 512;
    DeviceArray<uint8_t> elements(row * size_t(shape.out), 0), scales(scale_row * size_t(shape.out), 0);
    DeviceArray<uint8_t> matrix(packed_matrix_bytes(shape.format, shape.layout, shape.out, shape.in), 0);
    const PackArgs args = {shape.format, shape.layout,    shape.out,     shape.in,      0,
                           shape.out,    elements.data(), scales.data(), matrix.data(), nullptr};
    const double microseconds =
        graph_microseconds(4, 5, [&](int) { check_cuda(pack_cuda(args, cuda_target()), "pack_cuda"); });
    const double bytes = double(elements.size() + scales.size() + matrix.size());
    std::printf("    pack %-5s layout %d [%d, %d]: %.1f us, %.0f GB/s read and written\n",
                name_of(shape.format), int(shape.layout), shape.out, shape.in, microseconds,
                bytes / microseconds / 1000);
  }
}

}  // namespace nibblet::test
