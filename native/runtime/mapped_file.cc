#include "native/runtime/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "native/runtime/error.h"
#include "native/runtime/poison.h"

namespace nibblet {
namespace {

Error bad_format(const std::string& message) { return Error("BAD_FORMAT", message); }

size_t rest_of_page(size_t bytes) {
  constexpr size_t kPage = 4096;
  return (kPage - bytes % kPage) % kPage;
}

}  // namespace

MappedFile::MappedFile(const std::string& path) : path_(path) {
  // Without O_NONBLOCK a pipe that nobody writes would hang the caller.
  file_ = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  struct stat status{};
  auto fail = [&](const std::string& what) {
    if (file_ >= 0) close(file_);
    throw bad_format("cannot " + what);
  };
  if (file_ < 0 || fstat(file_, &status) != 0) fail("open " + path + ": " + std::strerror(errno));
  if (!S_ISREG(status.st_mode)) fail("map " + path + ": it is no regular file");
  bytes_ = size_t(status.st_size);
  if (bytes_ == 0) return;
  void* mapping = mmap(nullptr, bytes_, PROT_READ, MAP_PRIVATE, file_, 0);
  if (mapping == MAP_FAILED) fail("map " + path + ": " + std::strerror(errno));
  data_ = static_cast<uint8_t*>(mapping);
  poison(data_ + bytes_, rest_of_page(bytes_));
}

MappedFile::~MappedFile() {
  if (data_) {
    unpoison(data_ + bytes_, rest_of_page(bytes_));
    munmap(data_, bytes_);
  }
  close(file_);
}

void MappedFile::check_size() const {
  struct stat status{};
  if (fstat(file_, &status) != 0 || size_t(status.st_size) < bytes_) {
    throw bad_format(path_ + " was cut short while it was being loaded; download it again");
  }
}

void MappedFile::check(size_t offset, size_t bytes) const {
  if (offset > bytes_ || bytes > bytes_ - offset) {
    throw bad_format(path_ + " is truncated: bytes " + std::to_string(offset) + " to " +
                     std::to_string(offset + bytes) + " are wanted, it has " + std::to_string(bytes_) +
                     "; download it again");
  }
}

int MappedFile::read(size_t offset, size_t bytes, uint8_t* to) const noexcept {
  while (bytes > 0) {
    const ssize_t count = pread(file_, to, bytes, off_t(offset));
    if (count == 0) return kEnded;
    if (count < 0) {
      if (errno == EINTR) continue;
      return errno;
    }
    offset += size_t(count);
    bytes -= size_t(count);
    to += count;
  }
  return 0;
}

void MappedFile::will_read(size_t offset, size_t bytes) const noexcept {
  // Linux takes no more of one call than what it reads ahead of itself, 128 KiB unless it was told otherwise.
  constexpr size_t kAtOnce = size_t{128} << 10;
  for (const size_t end = offset + bytes; offset < end; offset += kAtOnce)
    posix_fadvise(file_, off_t(offset), off_t(std::min(kAtOnce, end - offset)), POSIX_FADV_WILLNEED);
}

void MappedFile::release(size_t offset, size_t bytes) const {
  // Outwards, to what the kernel maps around a fault: a page that is dropped too early only comes in again.
  constexpr size_t kAround = size_t{64} << 10;
  const size_t first = offset / kAround * kAround;
  madvise(data_ + first, std::min((offset + bytes + kAround - 1) / kAround * kAround, bytes_) - first,
          MADV_DONTNEED);
}

}  // namespace nibblet
