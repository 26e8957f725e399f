#pragma once

#include "kernels/pack/compact.h"
#include "kernels/pack/pack.h"
#include "native/runtime/load.h"
#include "native/runtime/mapped_file.h"
#include "test/kernels/compact_rows.h"
#include "test/runtime/fixture.h"

/// What the tests of compact_weight share.
namespace nibblet::test {

/// A weight on a device and the file that its rows come from.
struct LoadedOn {
  std::shared_ptr<Device> device;
  std::shared_ptr<Stream> stream;
  RandomWeight rows;
  TemporaryFile file;
  std::shared_ptr<Weight> weight;

  LoadedOn(std::shared_ptr<Device> on, Layout layout, RandomWeight source)
      : device(std::move(on)),
        stream(std::make_shared<Stream>(device, 1)),
        rows(std::move(source)),
        file(bytes_of(rows.elements)),
        weight(std::make_shared<Weight>(device, Format::bf16, layout, 1, rows.out, rows.in)) {}
  LoadedOn(const LoadedOn&) = delete;
  LoadedOn& operator=(const LoadedOn&) = delete;
  ~LoadedOn() {
    if (stream) stream->close();
  }

  WeightPart part(int32_t first, int32_t count) const {
    WeightPart part{};
    part.first_row = first;
    part.rows = count;
    part.elements = {std::make_shared<MappedFile>(file.path()), size_t(first) * size_t(rows.in) * 2,
                     DType::bf16, "layer.weight"};
    part.scale = float(first + 1);
    return part;
  }
  /// In two parts, which end inside a tile.
  void load() {
    const int32_t split = rows.out / 2;
    if (split > 0) stream->enqueue(load_weight(weight, part(0, split)));
    stream->enqueue(load_weight(weight, part(split, rows.out - split)));
  }
  void compact() { stream->enqueue(compact_weight(weight)); }

  /// Whether the device holds the file's bits and the parts' scales.
  bool is_whole() {
    const auto buffer = weight->buffer();
    const WeightView view = weight->view();
    const auto reader = std::make_shared<Stream>(device, 1);
    const std::vector<uint8_t> bytes =
        read(*reader, {buffer, 0, DType::u8, {int64_t(buffer->bytes())}}).bytes;
    reader->close();
    if (bytes.size() != buffer->bytes()) return false;
    WeightView host = view;
    host.data = bytes.data();
    const auto* scales = reinterpret_cast<const float*>(bytes.data() + view.matrix_bytes);
    for (int32_t n = 0; n < rows.out; n++) {
      if (scales[n] != (n < rows.out / 2 ? 1.0f : float(rows.out / 2 + 1))) return false;
      for (int32_t k = 0; k < rows.in; k++) {
        const double value = unpack_element(host, 0, n, k);
        const double wanted = bf16_value(element(rows, n, k));
        if (std::memcmp(&value, &wanted, sizeof value) != 0) return false;
      }
    }
    return true;
  }
  bool is_compact() const { return weight->view().format == Format::compact_bf16; }
};

/// Loads the weight, which then is not to become compact: it stays what it was.
inline void check_stays_plain(LoadedOn& loaded) {
  loaded.load();
  loaded.compact();
  CHECK(!sync(*loaded.stream).error);
  CHECK(!loaded.is_compact());
  CHECK(loaded.is_whole());
  CHECK_EQ(loaded.weight->exceptions(), uint64_t(0));
  CHECK(loaded.weight->bind().format == Format::bf16);
}

/// What a weight that is loaded refuses while it is to be made compact, and that it is whole once that is dropped.
inline void check_refuses_while_compacting(LoadedOn& loaded) {
  {
    const auto command = compact_weight(loaded.weight);
    CHECK_THROWS("INVALID_OPTION", loaded.weight->bind(), "stream.sync()");
    CHECK_THROWS("INVALID_OPTION", load_weight(loaded.weight, loaded.part(0, 8)), "complete");
    CHECK_THROWS("INVALID_OPTION", compact_weight(loaded.weight), "already");
  }
  // The command went without having run.
  CHECK(loaded.is_whole());
}

/// Weights that have no compact form. @param layout  that in which one would have it
inline void check_refuses_other_weights(const std::shared_ptr<Device>& device, Layout layout) {
  const auto other = [&](Format format, Layout ordered, int32_t matrices) {
    return std::make_shared<Weight>(device, format, ordered, matrices, 16, 64);
  };
  CHECK_THROWS("INVALID_OPTION", compact_weight(other(Format::e4m3, layout, 1)), "single bf16");
  CHECK_THROWS("INVALID_OPTION", compact_weight(other(Format::bf16, layout, 2)), "single bf16");
  CHECK_THROWS("INVALID_OPTION", compact_weight(other(Format::bf16, Layout::rows, 1)), "single bf16");
  CHECK_THROWS("INVALID_OPTION", other(Format::compact_bf16, layout, 1), "made of a bf16");
}

}  // namespace nibblet::test
