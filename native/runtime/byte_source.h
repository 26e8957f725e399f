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
  /// read() met the end of the source before the last of its bytes.
  static constexpr int kEnded = -1;

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
  /// Copies these bytes, whose range was checked. Any thread, several at once.
  /// @return 0, kEnded, or the errno of what failed
  virtual int read(size_t offset, size_t bytes, uint8_t* to) const noexcept = 0;
  /// These bytes will be read soon: what they are slow to come from may begin now. Any thread.
  virtual void will_read(size_t, size_t) const noexcept {}
  /// Makes these bytes in memory of the GPU that `execution` belongs to, after what was enqueued there; false when they have to
  /// come by way of read(). 16-byte aligned `to` is fastest.
  virtual bool enqueue_range(const CudaExecution&, size_t, size_t, uint8_t*) const { return false; }
  /// What range() gave is not needed again soon: the memory that holds it may go.
  virtual void release(size_t offset, size_t bytes) const = 0;
};

}  // namespace nibblet
