#pragma once

#include "native/runtime/load.h"
#include "native/runtime/mapped_file.h"
#include "test/kernels/weights.h"
#include "test/runtime/fixture.h"

/// What the tests of loads to the GPU share.
namespace nibblet::test {

/// A stream of cuda:0 that is closed at the end.
struct GpuStream {
  std::shared_ptr<Device> device = Device::open("cuda:0");
  std::shared_ptr<Stream> stream;
  explicit GpuStream(int threads = 3) : stream(std::make_shared<Stream>(device, threads)) {}
  ~GpuStream() { stream->close(); }

  std::vector<uint8_t> bytes_of(const std::shared_ptr<Buffer>& buffer) {
    return read(*stream, {buffer, 0, DType::u8, {int64_t(buffer->bytes())}}).bytes;
  }
};

inline DType stored_dtype(Format format) {
  return format == Format::nvfp4  ? DType::u8
         : format == Format::e4m3 ? DType::e4m3
         : format == Format::bf16 ? DType::bf16
                                  : DType::f32;
}

/// Random matrices in one file, behind a few bytes so that nothing is aligned: elements, block scales and row scales of each.
class Matrices {
 public:
  Matrices(Format format, int32_t count, int32_t out, int32_t in) : format_(format), out_(out), in_(in) {
    std::string bytes(3, 'x');
    for (int32_t i = 0; i < count; ++i) {
      weights_.emplace_back(format, out, in, uint32_t(i + 1));
      offsets_.push_back(bytes.size());
      bytes.append(test::bytes_of(weights_.back().elements));
      bytes.append(test::bytes_of(weights_.back().block_scales));
      bytes.append(test::bytes_of(weights_.back().row_scales));
    }
    file_.emplace(bytes);
    source_ = std::make_shared<MappedFile>(file_->path());
  }

  const std::string& path() const { return file_->path(); }
  std::shared_ptr<Weight> weight(const std::shared_ptr<Device>& device, Layout layout) const {
    return std::make_shared<Weight>(device, format_, layout, int32_t(weights_.size()), out_, in_);
  }

  /// Rows [first, first + rows) of a matrix.
  WeightPart part(int32_t matrix, int32_t first, int32_t rows) const {
    const RandomWeight& weight = weights_[size_t(matrix)];
    const size_t at = offsets_[size_t(matrix)];
    const auto behind = [&](size_t start, size_t bytes) {
      return start + bytes / size_t(out_) * size_t(first);
    };
    WeightPart part{};
    part.matrix = matrix;
    part.first_row = first;
    part.rows = rows;
    part.elements = {source_, behind(at, weight.elements.size()), stored_dtype(format_), "elements"};
    const size_t blocks_at = at + weight.elements.size(), rows_at = blocks_at + weight.block_scales.size();
    if (format_ == Format::nvfp4)
      part.block_scales = {source_, behind(blocks_at, weight.block_scales.size()), DType::e4m3, "blocks"};
    part.row_scales = {source_, rows_at + size_t(first) * sizeof(float), DType::f32, "rows"};
    return part;
  }
  /// All of them, whole.
  std::vector<WeightPart> parts() const {
    std::vector<WeightPart> all;
    for (int32_t i = 0; i < int32_t(weights_.size()); ++i) all.push_back(part(i, 0, out_));
    return all;
  }

  /// Whether these are the bytes of a weight's buffer that holds all matrices.
  bool are_in(const std::vector<uint8_t>& buffer, Layout layout) const {
    const size_t bytes = packed_matrix_bytes(format_, layout, out_, in_),
                 scales = size_t(out_) * sizeof(float);
    if (buffer.size() < weights_.size() * (bytes + scales)) return false;
    for (size_t i = 0; i < weights_.size(); ++i) {
      const PackedWeight packed(weights_[i], layout);
      if (std::memcmp(buffer.data() + i * bytes, packed.view.data, bytes) != 0) return false;
      if (std::memcmp(buffer.data() + weights_.size() * bytes + i * scales, weights_[i].row_scales.data(),
                      scales) != 0)
        return false;
    }
    return true;
  }

 private:
  const Format format_;
  const int32_t out_, in_;
  std::vector<RandomWeight> weights_;
  std::vector<size_t> offsets_;
  std::optional<TemporaryFile> file_;
  std::shared_ptr<MappedFile> source_;
};

}  // namespace nibblet::test
