#pragma once

#include <string>
#include <vector>

#include "native/runtime/byte_source.h"

namespace nibblet {

/// A checkpoint file, mapped read-only for the CPU: pages come in as they are copied, and `release` drops them from the process's
/// memory. `read` goes past the mapping: no page faults, and a file that is cut short meanwhile is an error, not a SIGBUS.
class MappedFile : public ByteSource {
 public:
  /// Throws BAD_FORMAT naming the file when it cannot be opened or mapped.
  explicit MappedFile(const std::string& path);
  ~MappedFile() override;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::string& path() const override { return path_; }
  void check(size_t offset, size_t bytes) const override;
  /// Reading what is gone would end the process.
  void check_size() const override;
  const uint8_t* range(const Execution&, size_t offset, size_t, std::vector<uint8_t>&) const override {
    return data_ + offset;
  }
  int read(size_t offset, size_t bytes, uint8_t* to) const noexcept override;
  void will_read(size_t offset, size_t bytes) const noexcept override;
  void release(size_t offset, size_t bytes) const override;

 private:
  std::string path_;
  int file_;
  uint8_t* data_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace nibblet
