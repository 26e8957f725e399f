#include <cuda_runtime.h>

#include "kernels/cuda/device.h"
#include "kernels/pack/compact.h"
#include "kernels/pack/cuda.h"

/// A bf16 matrix in Layout::fragments to Format::compact_bf16, on the device: first the best base of each row and how many
/// exceptions that leaves, then, where the caller finds that it pays, the matrix itself. A block has one tile of 16 rows.
namespace nibblet {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * 32;
constexpr int kScanThreads = 1024;
constexpr int kExponents = 256;
constexpr unsigned kWholeWarp = 0xffffffffu;
constexpr int kRegisters = 8;

/// A lane's registers of a bf16 unit: register r holds two inputs of row g + 8 · (r % 2).
struct Lane {
  uint32_t words[kRegisters];

  __device__ __forceinline__ Lane(const uint8_t* unit, int lane) {
#pragma unroll
    for (int mma = 0; mma < 2; mma++) {
      const uint4 four = reinterpret_cast<const uint4*>(unit)[32 * mma + lane];
      words[4 * mma] = four.x, words[4 * mma + 1] = four.y;
      words[4 * mma + 2] = four.z, words[4 * mma + 3] = four.w;
    }
  }

  /// Calls visit(r, half, bits) for the elements of row g (`lower` 0) or g + 8 (1), in the order of their inputs.
  template <class Visit>
  __device__ __forceinline__ void visit_row(int lower, const Visit& visit) const {
#pragma unroll
    for (int r = 0; r < kRegisters; r += 2) {
      visit(r + lower, 0, words[r + lower] & 0xffff);
      visit(r + lower, 1, words[r + lower] >> 16);
    }
  }
  __device__ __forceinline__ uint32_t exceptions(int lower, uint32_t base) const {
    uint32_t count = 0;
    visit_row(lower, [&](int, int, uint32_t bits) { count += is_compact_exception(bits, base); });
    return count;
  }
};

__device__ __forceinline__ const uint8_t* tile_of(const uint8_t* matrix, int32_t units) {
  return matrix + size_t(blockIdx.x) * size_t(units) * fragment_unit_bytes(Format::bf16);
}

__global__ void __launch_bounds__(kThreads)
    survey_rows(const uint8_t* matrix, int32_t units, CompactRow* rows) {
  grid_dependency_wait();
  __shared__ uint32_t counts[kFragmentRows * kExponents];
  const int lane = int(threadIdx.x % 32), warp = int(threadIdx.x / 32);
  for (int i = int(threadIdx.x); i < kFragmentRows * kExponents; i += kThreads) counts[i] = 0;
  __syncthreads();
  const uint8_t* tile = tile_of(matrix, units);
  for (int32_t unit = warp; unit < units; unit += kWarps) {
    const Lane elements(tile + size_t(unit) * fragment_unit_bytes(Format::bf16), lane);
    for (int lower = 0; lower < 2; lower++) {
      uint32_t* row = counts + (lane / 4 + 8 * lower) * kExponents;
      elements.visit_row(lower, [&](int, int, uint32_t bits) {
        // Zeros fit everywhere; other subnormals are counted with exponent 0, which no window has.
        if (bits & 0x7fff) atomicAdd(&row[bits >> 7 & 0xff], 1u);
      });
    }
  }
  __syncthreads();
  for (int r = warp; r < kFragmentRows; r += kWarps) {
    const uint32_t* row = counts + r * kExponents;
    uint32_t all = 0, best = 0;
    for (int i = lane; i < kExponents; i += 32) all += row[i];
    for (uint32_t base = uint32_t(lane); base <= kCompactLargestBase; base += 32) {
      uint32_t inside = 0;
      for (uint32_t i = 1; i <= kCompactWindow; i++) inside += row[base + i];
      // Of equals the lowest base.
      const uint32_t candidate = inside << 8 | (255 - base);
      best = candidate > best ? candidate : best;
    }
    for (int width = 16; width > 0; width /= 2) {
      all += __shfl_xor_sync(kWholeWarp, all, width);
      const uint32_t other = __shfl_xor_sync(kWholeWarp, best, width);
      best = other > best ? other : best;
    }
    if (lane == 0) {
      const uint32_t base = 255 - (best & 0xff);
      rows[size_t(blockIdx.x) * kFragmentRows + size_t(r)] = {0, (all - (best >> 8)) << 8 | base, {0, 0}};
    }
  }
}

/// How many of a row's exceptions are in the list.
__device__ __forceinline__ uint32_t listed_of(const CompactRow& row) {
  return row.count() > 2 ? row.count() - 2 : 0;
}

/// One block: where in the list each row's exceptions begin.
__global__ void __launch_bounds__(kScanThreads)
    place_lists(CompactRow* rows, int32_t count, CompactTotals* totals) {
  grid_dependency_wait();
  constexpr int kScanWarps = kScanThreads / 32;
  __shared__ unsigned long long sums[kScanWarps], exceptions[kScanWarps];
  __shared__ uint32_t most[kScanWarps];
  const int lane = int(threadIdx.x % 32), warp = int(threadIdx.x / 32);
  const int32_t each = (count + kScanThreads - 1) / kScanThreads, first = int32_t(threadIdx.x) * each;
  const int32_t last = first + each < count ? first + each : count;
  unsigned long long mine = 0, all = 0;
  uint32_t largest = 0;
  for (int32_t n = first; n < last; n++) {
    mine += listed_of(rows[n]);
    all += rows[n].count();
    largest = rows[n].count() > largest ? rows[n].count() : largest;
  }
  unsigned long long before = mine;
  for (int distance = 1; distance < 32; distance *= 2) {
    const unsigned long long other = __shfl_up_sync(kWholeWarp, before, unsigned(distance));
    if (lane >= distance) before += other;
  }
  if (lane == 31) sums[warp] = before;
  before -= mine;
  for (int width = 16; width > 0; width /= 2) {
    all += __shfl_xor_sync(kWholeWarp, all, width);
    const uint32_t other = __shfl_xor_sync(kWholeWarp, largest, width);
    largest = other > largest ? other : largest;
  }
  if (lane == 0) exceptions[warp] = all, most[warp] = largest;
  __syncthreads();
  for (int w = 0; w < warp; w++) before += sums[w];
  for (int32_t n = first; n < last; n++) {
    rows[n].more = uint32_t(before);
    before += listed_of(rows[n]);
  }
  if (threadIdx.x == 0) {
    CompactTotals total{};
    for (int w = 0; w < kScanWarps; w++) {
      total.exceptions += exceptions[w];
      total.listed += sums[w];
      total.most_in_row = most[w] > total.most_in_row ? most[w] : total.most_in_row;
    }
    *totals = total;
  }
}

__global__ void __launch_bounds__(kThreads)
    compact_tile(const uint8_t* matrix, int32_t units, const CompactRow* rows, uint8_t* to,
                 CompactRow* to_rows, uint32_t* list) {
  grid_dependency_wait();
  __shared__ uint32_t found[kWarps][kFragmentRows];
  const int lane = int(threadIdx.x % 32), warp = int(threadIdx.x / 32), g = lane / 4, t = lane % 4;
  const size_t first_row = size_t(blockIdx.x) * kFragmentRows;
  const CompactRow about[2] = {rows[first_row + size_t(g)], rows[first_row + size_t(g) + 8]};
  CompactRow* mine = to_rows + first_row + g;
  const int32_t begin = units * warp / kWarps, end = units * (warp + 1) / kWarps;
  const uint8_t* tile = tile_of(matrix, units);
  const auto read = [&](int32_t unit) {
    return Lane(tile + size_t(unit) * fragment_unit_bytes(Format::bf16), lane);
  };

  // Where each warp's exceptions of a row begin: warps have consecutive stretches of inputs.
  uint32_t counts[2] = {};
  for (int32_t unit = begin; unit < end; unit++) {
    const Lane elements = read(unit);
    for (int lower = 0; lower < 2; lower++) counts[lower] += elements.exceptions(lower, about[lower].base());
  }
  for (int lower = 0; lower < 2; lower++) {
    counts[lower] += __shfl_xor_sync(kWholeWarp, counts[lower], 1);
    counts[lower] += __shfl_xor_sync(kWholeWarp, counts[lower], 2);
    if (t == 0) found[warp][g + 8 * lower] = counts[lower];
    if (warp == 0 && t == 0) mine[8 * lower] = {about[lower].more, about[lower].count_and_base, {0, 0}};
  }
  __syncthreads();
  uint32_t next[2] = {};
  for (int w = 0; w < warp; w++) {
    for (int lower = 0; lower < 2; lower++) next[lower] += found[w][g + 8 * lower];
  }

  to += size_t(blockIdx.x) * size_t(units) * fragment_unit_bytes(Format::compact_bf16);
  for (int32_t unit = begin; unit < end; unit++) {
    const Lane elements = read(unit);
    uint32_t planes[4] = {}, exponents[2] = {};
#pragma unroll
    for (int r = 0; r < kRegisters; r++) {
      const uint32_t base = about[r % 2].base(), word = elements.words[r];
      const uint32_t pair = compact_reduced(word & 0xffff, base) | compact_reduced(word >> 16, base) << 16;
      planes[r / 2] |= compact_plane_bits(pair, r);
      exponents[r / 4] |= compact_exponent_bits(pair, r);
    }
    uint8_t* unit_to = to + size_t(unit) * fragment_unit_bytes(Format::compact_bf16);
    *reinterpret_cast<uint4*>(unit_to + compact_plane_offset(lane)) =
        make_uint4(planes[0], planes[1], planes[2], planes[3]);
    *reinterpret_cast<uint2*>(unit_to + compact_exponent_offset(lane)) =
        make_uint2(exponents[0], exponents[1]);

    for (int lower = 0; lower < 2; lower++) {
      const uint32_t base = about[lower].base(), count = elements.exceptions(lower, base);
      if (!__any_sync(kWholeWarp, count > 0)) continue;
      uint32_t before = count;
      for (int distance = 1; distance < 4; distance *= 2) {
        const uint32_t other = __shfl_up_sync(kWholeWarp, before, unsigned(distance), 4);
        if (t >= distance) before += other;
      }
      const uint32_t after = next[lower] + __shfl_sync(kWholeWarp, before, 3, 4);
      uint32_t at = next[lower] + before - count;
      next[lower] = after;
      elements.visit_row(lower, [&](int r, int half, uint32_t bits) {
        if (!is_compact_exception(bits, base)) return;
        const uint32_t input = uint32_t(unit) * 32 + uint32_t(8 * t + r / 4 * 4 + r % 4 / 2 * 2 + half);
        const uint32_t exception = compact_exception(input, bits);
        if (at < 2) {
          mine[8 * lower].first[at] = exception;
        } else {
          list[about[lower].more + (at - 2)] = exception;
        }
        at++;
      });
    }
  }
}

}  // namespace

cudaError_t compact_survey_cuda(const uint8_t* matrix, int32_t out, int32_t in, CompactRow* rows,
                                CompactTotals* totals, const CudaTarget& target) {
  const int32_t tiles = round_up(out, kFragmentRows) / kFragmentRows;
  const cudaError_t error = launch(target, {dim3(unsigned(tiles)), dim3(kThreads)}, survey_rows, matrix,
                                   fragment_units(Format::bf16, in), rows);
  if (error != cudaSuccess) return error;
  return launch(target, {dim3(1), dim3(kScanThreads)}, place_lists, rows, tiles * kFragmentRows, totals);
}

cudaError_t compact_cuda(const uint8_t* matrix, int32_t out, int32_t in, const CompactRow* rows,
                         uint8_t* compact, const CudaTarget& target) {
  if (in > kCompactMostInputs) return cudaErrorInvalidValue;
  const int32_t tiles = round_up(out, kFragmentRows) / kFragmentRows;
  return launch(target, {dim3(unsigned(tiles)), dim3(kThreads)}, compact_tile, matrix,
                fragment_units(Format::bf16, in), rows, compact,
                reinterpret_cast<CompactRow*>(compact + compact_rows_offset(out, in)),
                reinterpret_cast<uint32_t*>(compact + compact_list_offset(out, in)));
}

}  // namespace nibblet
