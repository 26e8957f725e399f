#pragma once

#include <mutex>
#include <optional>
#include <vector>

#include "native/runtime/load_source.h"

namespace nibblet {

/// Tensors, or parts of them, on their way from files to memory: read by all workers at once, each of which looks at what it
/// read while that is in its cache.
class FileReads {
 public:
  /// What is a fault of the file.
  enum class Check {
    none,
    nan,          ///< e4m3 elements: NaN
    block_scale,  ///< e4m3 scales: NaN or negative
    row_scale,    ///< widened: not finite, or negative
  };
  struct Read {
    const FileTensor* tensor;
    size_t first;  ///< element of the tensor, of its dtype
    size_t count;
    uint8_t* to;
    bool widen = false;  ///< f32, bf16 or f16 to f32; otherwise bit for bit
    Check check = Check::none;
  };

  void add(const Read& read);
  /// Elements that will be wanted after these: those that come from a disk are asked for before the disk has nothing to do.
  void will_read(const FileTensor& tensor, size_t first, size_t count);

  /// Reads everything, unless cancelled. Engine thread. Throws BAD_FORMAT for what cannot be read or is at fault, of several
  /// the first in the order they were added in.
  void run(const Execution& execution);
  /// Whether run() was so slow that its bytes must have come from a disk.
  bool from_disk() const { return from_disk_; }

 private:
  struct Slice {
    size_t read;
    size_t first, count;  // inside it
  };
  struct Fault {
    size_t slice;
    Error error;
  };

  void read_slice(size_t index);
  std::optional<Error> fault_in(const Read& read, size_t first, size_t count) const;

  std::vector<Read> reads_, later_;
  std::vector<Slice> slices_;
  size_t bytes_ = 0;
  bool from_disk_ = false;
  std::mutex mutex_;
  std::optional<Fault> fault_;
};

}  // namespace nibblet
