#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "kernels/synthetic/draw.h"
#include "native/runtime/buffer.h"
#include "native/runtime/byte_source.h"

namespace nibblet {

/// A file that exists only as a description: every region of it is drawn from a table (kernels/synthetic/draw.h) when it
/// is read, the same bytes whichever part is asked for and however many threads make it.
class SyntheticFile : public ByteSource {
 public:
  struct Table {
    Draw draw;
    bool alternate;
    std::vector<uint8_t> entries;
  };
  struct Region {
    size_t offset;
    size_t bytes;
    size_t table;
    uint64_t seed;
  };

  /// Throws INVALID_OPTION unless the regions follow one another from 0 on without a gap and name tables of the right size.
  SyntheticFile(std::string path, std::vector<Table> tables, std::vector<Region> regions);

  const std::string& path() const override { return path_; }
  size_t bytes() const { return bytes_; }
  void check(size_t offset, size_t bytes) const override;
  const uint8_t* range(const Execution& execution, size_t offset, size_t bytes,
                       std::vector<uint8_t>& scratch) const override;
  int read(size_t offset, size_t bytes, uint8_t* to) const noexcept override {
    fill(offset, bytes, to, 0, 1);
    return 0;
  }
  void release(size_t, size_t) const override {}
#if NIBBLET_CUDA
  bool enqueue_range(const CudaExecution& execution, size_t offset, size_t bytes, uint8_t* to) const override;
#endif

  /// The part of [offset, offset + bytes) that falls to one worker, into out.
  void fill(size_t offset, size_t bytes, uint8_t* out, int worker, int workers) const;

 private:
  /// The pieces of regions that [offset, last) consists of: piece(region, start inside it, bytes, offset in the range).
  template <class Piece>
  void for_pieces(size_t offset, size_t last, const Piece& piece) const;

  std::string path_;
  std::vector<Table> tables_;
  std::vector<Region> regions_;
  size_t bytes_ = 0;
#if NIBBLET_CUDA
  /// The tables one after another on the GPU that asked for bytes last; engine threads take turns with them.
  mutable std::mutex device_mutex_;
  mutable std::shared_ptr<Buffer> device_tables_;
#endif
};

}  // namespace nibblet
