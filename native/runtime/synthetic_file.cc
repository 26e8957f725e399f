#include "native/runtime/synthetic_file.h"

#include <algorithm>

#include "kernels/numerics/partition.h"
#include "native/runtime/error.h"
#if NIBBLET_CUDA
#include "kernels/synthetic/cuda.h"
#include "native/runtime/cuda/execution.h"
#endif

namespace nibblet {
namespace {

struct FillArgs {
  const SyntheticFile* file;
  size_t offset;
  size_t bytes;
  uint8_t* out;
};

void fill_part(const FillArgs& args, int, int worker, int workers) {
  args.file->fill(args.offset, args.bytes, args.out, worker, workers);
}

}  // namespace

SyntheticFile::SyntheticFile(std::string path, std::vector<Table> tables, std::vector<Region> regions)
    : path_(std::move(path)), tables_(std::move(tables)), regions_(std::move(regions)) {
  for (const Table& table : tables_) {
    if (table.entries.size() != draw_entries(table.draw) * draw_entry_bytes(table.draw)) {
      throw invalid("a table of " + path_ + " has " + std::to_string(table.entries.size()) +
                    " bytes, expected " +
                    std::to_string(draw_entries(table.draw) * draw_entry_bytes(table.draw)));
    }
    if (table.alternate && table.draw != Draw::halves && table.draw != Draw::words) {
      throw invalid("only halves and words can alternate");
    }
  }
  for (const Region& region : regions_) {
    if (region.offset != bytes_ || region.bytes > (size_t{1} << 50) || region.table >= tables_.size()) {
      throw invalid("region at " + std::to_string(region.offset) + " of " + path_ +
                    " does not follow the one before it, or has no table");
    }
    bytes_ += region.bytes;
  }
}

void SyntheticFile::check(size_t offset, size_t bytes) const {
  if (offset > bytes_ || bytes > bytes_ - offset) {
    throw Error("BAD_FORMAT", path_ + " has " + std::to_string(bytes_) + " bytes, not the range " +
                                  std::to_string(offset) + " to " + std::to_string(offset + bytes));
  }
}

const uint8_t* SyntheticFile::range(const Execution& execution, size_t offset, size_t bytes,
                                    std::vector<uint8_t>& scratch) const {
  scratch.resize(bytes);
  // A random byte costs about what ten multiply-adds do.
  run_phases(execution, fill_part, kDrawPhases, FillArgs{this, offset, bytes, scratch.data()},
             10.0 * double(bytes));
  return scratch.data();
}

template <class Piece>
void SyntheticFile::for_pieces(size_t offset, size_t last, const Piece& piece) const {
  if (offset == last) return;
  auto after = std::upper_bound(regions_.begin(), regions_.end(), offset,
                                [](size_t place, const Region& region) { return place < region.offset; });
  size_t at = offset;
  for (auto region = after - 1; at < last; ++region) {
    const size_t end = std::min(last, region->offset + region->bytes);
    if (end <= at) continue;
    piece(*region, at - region->offset, end - at, at - offset);
    at = end;
  }
}

void SyntheticFile::fill(size_t offset, size_t bytes, uint8_t* out, int worker, int workers) const {
  const Range part = partition(int64_t(bytes), worker, workers);
  out += part.first;
  for_pieces(offset + size_t(part.first), offset + size_t(part.last),
             [&](const Region& region, size_t first, size_t count, size_t at) {
               const Table& table = tables_[region.table];
               draw({table.draw, table.alternate, region.seed, table.entries.data(), first, count, out + at},
                    0, 0, 1);
             });
}

#if NIBBLET_CUDA
bool SyntheticFile::enqueue_range(const CudaExecution& execution, size_t offset, size_t bytes,
                                  uint8_t* to) const {
  constexpr size_t kAlign = 16;
  const auto place = [&](size_t table) {
    size_t at = 0;
    for (size_t i = 0; i < table; ++i) at += (tables_[i].entries.size() + kAlign - 1) / kAlign * kAlign;
    return at;
  };
  std::lock_guard lock(device_mutex_);
  if (!device_tables_ || device_tables_->device() != execution.device) {
    device_tables_ = std::make_shared<Buffer>(execution.device, place(tables_.size()));
    for (size_t i = 0; i < tables_.size(); ++i) {
      const std::vector<uint8_t>& entries = tables_[i].entries;
      execution.device->write(device_tables_->data() + place(i), entries.data(), entries.size());
    }
  }
  for_pieces(offset, offset + bytes, [&](const Region& region, size_t first, size_t count, size_t at) {
    const Table& table = tables_[region.table];
    check_cuda(draw_cuda({table.draw, table.alternate, region.seed,
                          device_tables_->data() + place(region.table), first, count, to + at},
                         execution.target),
               "drawing a synthetic weight");
  });
  return true;
}
#endif

}  // namespace nibblet
