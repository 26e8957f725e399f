#pragma once

#include <string>
#include <utility>

#include "native/runtime/byte_source.h"
#include "native/runtime/error.h"

namespace nibblet::test {

/// Bytes without a file, of whatever size is asked for, that can be read and nothing else.
class StubSource : public ByteSource {
 public:
  explicit StubSource(std::string path) : path_(std::move(path)) {}
  const std::string& path() const override { return path_; }
  void check(size_t, size_t) const override {}
  const uint8_t* range(const Execution&, size_t, size_t, std::vector<uint8_t>&) const override {
    throw Error("OP_FAILED", "a GPU's loads read");
  }
  void release(size_t, size_t) const override {}

 private:
  const std::string path_;
};

}  // namespace nibblet::test
