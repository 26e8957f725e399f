#include "native/runtime/cuda/upload_weight.h"

#include <algorithm>

#include "kernels/pack/cuda.h"
#include "kernels/pack/layout.h"
#include "native/runtime/cuda/staging.h"
#include "native/runtime/file_reads.h"

namespace nibblet {
namespace {

/// Of what lies in a batch; wider loads of the packing kernels want it.
constexpr size_t kAlign = 16;
/// Asked of a disk ahead of a batch.
constexpr size_t kAheadBytes = 2 * CudaStaging::kPieceBytes;

size_t aligned(size_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

/// Of the elements and block scales of so many rows.
size_t code_bytes(const LoadPart& part, size_t rows) {
  return aligned(part.element_bytes(rows)) + aligned(part.block_bytes(rows));
}

size_t staged_bytes(const LoadPart& part, size_t rows) {
  return code_bytes(part, rows) + rows * sizeof(float);
}

/// How many rows, from `first` on, are to be staged in so many bytes; 0: none, and the next piece is to be begun.
size_t rows_for(const LoadPart& part, size_t first, size_t room) {
  const size_t left = part.rows() - first;
  if (staged_bytes(part, left) <= room) return left;
  const size_t row = part.element_bytes(1) + part.block_bytes(1) + sizeof(float);
  const size_t rows = room < 2 * kAlign ? 0 : (room - 2 * kAlign) / row;
  // Columns are made of chunks of 128 rows.
  if (rows >= kColumnRows) return rows / kColumnRows * kColumnRows;
  return room == CudaStaging::kPieceBytes ? rows : 0;
}

/// The rest of the parts, a batch at a time.
class Upload {
 public:
  Upload(const CudaExecution& execution, const Weight& weight, const std::vector<LoadPart>& parts)
      : execution_(execution), staging_(*execution.staging), weight_(weight), parts_(parts) {}

  void run() {
    bool from_disk = false;
    while (part_ < parts_.size() && !is_cancelled(execution_.host)) {
      plan();
      FileReads reads;
      stage(reads);
      if (from_disk) read_ahead(reads);
      reads.run(execution_.host);
      if (is_cancelled(execution_.host)) return;
      from_disk = reads.from_disk();
      send();
    }
  }

 private:
  /// Rows of a part, and where in the region their bytes lie.
  struct Run {
    const LoadPart* part;
    size_t first, count;
    size_t elements, blocks, row_scales;
  };
  struct Span {
    size_t first, last;
  };

  /// Fills runs_ with what comes next and fits in the piece, or in the next one.
  void plan() {
    runs_.clear();
    bytes_ = 0;
    size_t room = staging_.room();
    while (part_ < parts_.size()) {
      const LoadPart& part = parts_[part_];
      const size_t count = rows_for(part, row_, room);
      if (count == 0) {
        if (!runs_.empty()) break;
        if (room == CudaStaging::kPieceBytes) throw too_long(part);
        room = CudaStaging::kPieceBytes;
        continue;
      }
      runs_.push_back({&part, row_, count, 0, 0, 0});
      room -= staged_bytes(part, count);
      row_ += count;
      if (row_ < part.rows()) break;
      ++part_;
      row_ = 0;
    }
    for (Run& run : runs_) {
      run.elements = bytes_;
      run.blocks = run.elements + aligned(run.part->element_bytes(run.count));
      bytes_ += code_bytes(*run.part, run.count);
    }
    // Behind one another, so that those of matrices that follow one another are one copy.
    for (Run& run : runs_) {
      run.row_scales = bytes_;
      bytes_ += run.count * sizeof(float);
    }
  }

  void stage(FileReads& reads) {
    region_ = staging_.take(bytes_);
    spans_.clear();
    for (const Run& run : runs_) {
      const LoadPart& part = *run.part;
      const WeightPart& from = part.part();
      const size_t in = part.inputs();
      // Codes are two to a byte.
      const size_t row = part.file_bytes(1) / dtype_bytes(from.elements.dtype);
      stage_codes(reads,
                  {&from.elements, run.first * row, run.count * row, nullptr, part.widened(),
                   part.is_e4m3() ? FileReads::Check::nan : FileReads::Check::none},
                  run.elements);
      if (from.block_scales) {
        const size_t blocks = in / kBlockInputs;
        stage_codes(reads,
                    {&from.block_scales, run.first * blocks, run.count * blocks, nullptr, false,
                     FileReads::Check::block_scale},
                    run.blocks);
      }
      uint8_t* scales = region_.host + run.row_scales;
      if (from.row_scales) {
        reads.add({&from.row_scales, run.first, run.count, scales, true, FileReads::Check::row_scale});
      } else {
        std::fill_n(reinterpret_cast<float*>(scales), run.count, from.scale);
      }
    }
  }

  void stage_codes(FileReads& reads, FileReads::Read read, size_t at) {
    const size_t size = dtype_bytes(read.tensor->dtype), bytes = read.count * size;
    if (!read.widen && read.tensor->file->enqueue_range(execution_, read.tensor->offset + read.first * size,
                                                        bytes, region_.device + at))
      return;
    read.to = region_.host + at;
    reads.add(read);
    const size_t last = at + aligned(read.widen ? read.count * sizeof(float) : bytes);
    if (!spans_.empty() && spans_.back().last == at) {
      spans_.back().last = last;
    } else {
      spans_.push_back({at, last});
    }
  }

  /// What the batches after this one read.
  void read_ahead(FileReads& reads) const {
    size_t part = part_, row = row_;
    for (size_t bytes = 0; part < parts_.size() && bytes < kAheadBytes; ++part, row = 0) {
      const LoadPart& next = parts_[part];
      const FileTensor &elements = next.part().elements, &blocks = next.part().block_scales;
      const size_t size = dtype_bytes(elements.dtype), wanted = kAheadBytes - bytes;
      const size_t step = next.file_bytes(1) / size;
      const size_t rows = std::min(next.rows() - row, wanted / next.file_bytes(1) + 1);
      reads.will_read(elements, row * step, rows * step);
      if (blocks) reads.will_read(blocks, next.block_bytes(row), next.block_bytes(rows));
      bytes += next.file_bytes(rows) + next.block_bytes(rows);
    }
  }

  void send() {
    for (const auto& [first, last] : spans_)
      staging_.send(region_.host + first, last - first, region_.device + first);
    for (size_t i = 0; i < runs_.size();) {
      float* to = runs_[i].part->row_scales(weight_, runs_[i].first);
      const size_t from = runs_[i].row_scales;
      size_t count = 0;
      for (; i < runs_.size() && runs_[i].part->row_scales(weight_, runs_[i].first) == to + count; ++i)
        count += runs_[i].count;
      staging_.send(region_.host + from, count * sizeof(float), to);
    }
    for (const Run& run : runs_) {
      check_cuda(pack_cuda(run.part->pack_args(weight_, run.first, run.count, region_.device + run.elements,
                                               region_.device + run.blocks),
                           execution_.target),
                 "packing a weight");
    }
  }

  static Error too_long(const LoadPart& part) {
    const FileTensor& tensor = part.part().elements;
    return bad_format("tensor `" + tensor.name + "` in " + tensor.file->path() +
                      " has rows that take more than " + std::to_string(CudaStaging::kPieceBytes) +
                      " bytes, which no model has");
  }

  const CudaExecution& execution_;
  CudaStaging& staging_;
  const Weight& weight_;
  const std::vector<LoadPart>& parts_;
  size_t part_ = 0, row_ = 0;  // what is next

  std::vector<Run> runs_;
  std::vector<Span> spans_;  // of the region, to be copied to the GPU
  size_t bytes_ = 0;
  CudaStaging::Region region_{};
};

}  // namespace

void upload_weight(const CudaExecution& execution, const Weight& weight, const std::vector<LoadPart>& parts) {
  Upload(execution, weight, parts).run();
}

}  // namespace nibblet
