#include "native/runtime/file_reads.h"

#include <algorithm>
#include <chrono>

#include "native/runtime/load_part.h"
#include "native/runtime/pool.h"

namespace nibblet {
namespace {

/// Read between two looks at the cancel flag. Small enough to stay in a core's own cache for the check, and that the last
/// slice of a batch leaves the others little time to wait for it.
constexpr size_t kSliceBytes = size_t{256} << 10;
constexpr size_t kAheadSliceBytes = size_t{1} << 20;
/// Fewer bytes are read by one thread before others are awake.
constexpr size_t kAlone = size_t{32} << 10;
/// One thread copies from the page cache at more than twice this.
constexpr double kDiskBytesPerSecond = 3e9;

size_t bytes_of(const FileReads::Read& read, size_t count) { return count * dtype_bytes(read.tensor->dtype); }

size_t place_of(const FileReads::Read& read, size_t first) {
  return read.tensor->offset + bytes_of(read, read.first + first);
}

/// Floats from what lies at the end of their own memory: each is written no further than what was read.
void widen_in_place(uint8_t* to, const uint8_t* from, DType type, size_t count) {
  for (size_t i = 0; i < count; ++i) {
    const float value = widen(from, type, i);
    std::memcpy(to + i * sizeof value, &value, sizeof value);
  }
}

}  // namespace

void FileReads::add(const Read& read) {
  const size_t step = kSliceBytes / dtype_bytes(read.tensor->dtype);
  for (size_t first = 0; first < read.count; first += step)
    slices_.push_back({reads_.size(), first, std::min(step, read.count - first)});
  reads_.push_back(read);
  bytes_ += bytes_of(read, read.count);
}

void FileReads::will_read(const FileTensor& tensor, size_t first, size_t count) {
  // Several workers ask at once: each may have to wait for room in the disk's queue.
  const size_t step = kAheadSliceBytes / dtype_bytes(tensor.dtype);
  for (const size_t last = first + count; first < last; first += step)
    later_.push_back({&tensor, first, std::min(step, last - first), nullptr});
}

void FileReads::run(const Execution& execution) {
  const auto start = std::chrono::steady_clock::now();
  const size_t later = later_.size(), slices = later + slices_.size();
  // What is wanted first comes first.
  const auto slice = [&](int index) {
    if (size_t(index) < slices_.size()) return read_slice(size_t(index));
    const Read& read = later_[size_t(index) - slices_.size()];
    read.tensor->file->will_read(place_of(read, 0), bytes_of(read, read.count));
  };
  const int threads = bytes_ < kAlone && later == 0 ? 1 : execution.threads;
  if (slices > 0) Pool::instance().run(threads, int(slices), slice, execution.cancelled);
  const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
  from_disk_ = bytes_ >= kSliceBytes && double(bytes_) < taken.count() * kDiskBytesPerSecond;
  if (fault_) throw fault_->error;
}

void FileReads::read_slice(size_t index) {
  const Slice& slice = slices_[index];
  const Read& read = reads_[slice.read];
  const size_t size = dtype_bytes(read.tensor->dtype), bytes = slice.count * size;
  const size_t wide = read.widen ? sizeof(float) : size;
  uint8_t* to = read.to + slice.first * wide;
  uint8_t* from = to + slice.count * (wide - size);
  const ByteSource& file = *read.tensor->file;
  const int status = file.read(place_of(read, slice.first), bytes, from);
  std::optional<Error> error;
  if (status == ByteSource::kEnded) {
    error = bad_format(file.path() + " was cut short while it was being loaded; download it again");
  } else if (status != 0) {
    error = bad_format("cannot read `" + read.tensor->name + "` from " + file.path() + ": " +
                       std::strerror(status) + "; check the disk, or download the file again");
  } else {
    if (from != to) widen_in_place(to, from, read.tensor->dtype, slice.count);
    error = fault_in(read, slice.first, slice.count);
  }
  if (!error) return;
  std::lock_guard lock(mutex_);
  if (!fault_ || index < fault_->slice) fault_ = {index, std::move(*error)};
}

std::optional<Error> FileReads::fault_in(const Read& read, size_t first, size_t count) const {
  if (read.check == Check::row_scale) {
    for (size_t i = first; i < first + count; ++i) {
      const float scale = widen(read.to, DType::f32, i);
      if (!is_scale(scale)) return bad_scale(*read.tensor, scale);
    }
  } else if (read.check != Check::none) {
    // Of the bits in which 0x7f and above is at fault.
    const uint8_t mask = read.check == Check::nan ? 0x7f : 0xff;
    const uint8_t* bytes = read.to + first;
    uint8_t largest = 0;
    for (size_t i = 0; i < count; ++i) largest = std::max<uint8_t>(largest, bytes[i] & mask);
    for (size_t i = 0; i < count && largest >= 0x7f; ++i) {
      if ((bytes[i] & mask) >= 0x7f) return bad_element(*read.tensor, read.first + first + i);
    }
  }
  return std::nullopt;
}

}  // namespace nibblet
