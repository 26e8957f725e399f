#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "native/runtime/command.h"

namespace nibblet {

/// Where loads take bytes from: a file on disk, or one that exists only as a description.
class ByteSource {
 public:
  virtual ~ByteSource() = default;
  /// For messages.
  virtual const std::string& path() const = 0;
  /// Throws BAD_FORMAT unless the source has `bytes` bytes from `offset`. Any thread.
  virtual void check(size_t offset, size_t bytes) const = 0;
  /// Throws BAD_FORMAT when the source became shorter since it was opened.
  virtual void check_size() const {}
  /// These bytes, in place or made in `scratch`; valid until scratch changes. The range was checked. Engine thread.
  virtual const uint8_t* range(const Execution& execution, size_t offset, size_t bytes,
                               std::vector<uint8_t>& scratch) const = 0;
  /// Makes these bytes in memory of the GPU that `execution` belongs to, after what was enqueued there; false when they have to
  /// come by way of range(). 16-byte aligned `to` is fastest.
  virtual bool enqueue_range(const CudaExecution&, size_t, size_t, uint8_t*) const { return false; }
  /// The bytes are not needed again soon: the memory that holds them may go.
  virtual void release(size_t offset, size_t bytes) const = 0;
};

}  // namespace nibblet
