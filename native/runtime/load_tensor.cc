#include <algorithm>

#include "native/runtime/load_source.h"
#if NIBBLET_CUDA
#include "native/runtime/cuda/execution.h"
#include "native/runtime/cuda/staging.h"
#include "native/runtime/file_reads.h"
#endif

namespace nibblet {
namespace {

/// Copied between two looks at the cancel flag.
constexpr size_t kPieceElements = size_t{1} << 20;

class LoadTensor : public Command {
 public:
  LoadTensor(const Tensor& to, const FileTensor& from) : to_(to), from_(from) {
    if (to.dtype != from.dtype && !(to.dtype == DType::f32 && widens(from.dtype))) {
      throw invalid("cannot load `" + from.name + "`: " + dtype_name(from.dtype) + " into " + describe(to));
    }
    from.file->check(from.offset, size_t(to.elements()) * dtype_bytes(from.dtype));
  }
  const char* name() const override { return "loadTensor"; }

  void run(const Execution& execution) override {
    for_pieces(execution, [&](size_t first, size_t count) {
      copy(execution, first, count, to_.as<uint8_t>() + first * dtype_bytes(to_.dtype));
    });
  }

#if NIBBLET_CUDA
  void enqueue(const CudaExecution& execution) override {
    if (!execution.staging) throw invalid("a load cannot be captured: enqueue it outside of the graph");
    const size_t size = dtype_bytes(to_.dtype);
    if (to_.dtype == from_.dtype &&
        from_.file->enqueue_range(execution, from_.offset, to_.bytes(), to_.as<uint8_t>()))
      return;
    CudaStaging& staging = *execution.staging;
    const size_t elements = size_t(to_.elements());
    bool from_disk = false;
    for (size_t first = 0, count; first < elements && !is_cancelled(execution.host); first += count) {
      const size_t left = elements - first, most = CudaStaging::kPieceBytes / size;
      // What fits in a piece is not cut in two.
      count = left <= most ? left : std::max(staging.room() / size, size_t{1});
      const CudaStaging::Region region = staging.take(count * size);
      FileReads reads;
      reads.add({&from_, first, count, region.host, to_.dtype != from_.dtype});
      const size_t next = first + count;
      if (from_disk) reads.will_read(from_, next, std::min(elements - next, 2 * most));
      reads.run(execution.host);
      from_disk = reads.from_disk();
      if (is_cancelled(execution.host)) return;
      staging.send(region.host, count * size, to_.as<uint8_t>() + first * size);
    }
  }
#endif

 private:
  template <class Piece>
  void for_pieces(const Execution& execution, const Piece& piece) const {
    from_.file->check_size();
    const size_t count = size_t(to_.elements());
    for (size_t first = 0; first < count && !is_cancelled(execution); first += kPieceElements)
      piece(first, std::min(count - first, kPieceElements));
  }

  void copy(const Execution& execution, size_t first, size_t count, uint8_t* to) const {
    const size_t size = dtype_bytes(from_.dtype), offset = from_.offset + first * size;
    const uint8_t* data = from_.file->range(execution, offset, count * size, load_scratch.elements);
    if (is_cancelled(execution)) return;
    if (to_.dtype == from_.dtype) {
      std::memcpy(to, data, count * size);
    } else {
      for (size_t i = 0; i < count; ++i) reinterpret_cast<float*>(to)[i] = widen(data, from_.dtype, i);
    }
    from_.file->release(offset, count * size);
  }

  Tensor to_;
  FileTensor from_;
};

}  // namespace

std::unique_ptr<Command> load_tensor(const Tensor& to, const FileTensor& from) {
  return std::make_unique<LoadTensor>(to, from);
}

}  // namespace nibblet
