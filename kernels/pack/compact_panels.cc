#include "kernels/pack/compact_panels.h"

#include <cstring>

#include "kernels/numerics/partition.h"
#include "kernels/simd/dispatch.h"

namespace nibblet {
namespace {

constexpr int kRegisters = kBlockInputs / 2;
constexpr int kExponents = 256;

int32_t panels_of(int32_t out) { return round_up(out, kPanelRows) / kPanelRows; }
int32_t blocks_of(int32_t in) { return round_up(in, kBlockInputs) / kBlockInputs; }

const uint8_t* plain_panel(const CompactPanelsArgs& args, int64_t panel) {
  return args.matrix + size_t(panel) * panel_bytes(Format::bf16, args.in);
}

uint32_t load_word(const uint8_t* from) {
  uint32_t word;
  std::memcpy(&word, from, sizeof word);
  return word;
}

void count_exponents(const uint8_t* panel, int32_t blocks, uint32_t (*counts)[kPanelRows]) {
  for (int32_t i = 0; i < blocks * kRegisters; i++) {
    for (int r = 0; r < kPanelRows; r++) {
      const uint32_t pair = load_word(panel + (size_t(i) * kPanelRows + size_t(r)) * 4);
      counts[pair >> 7 & 0xff][r]++;
      counts[pair >> 23 & 0xff][r]++;
    }
  }
}

/// Of each row the lowest of the bases that leave the fewest exceptions.
NIBBLET_VECTORIZED inline void choose_bases(const uint32_t (*counts)[kPanelRows], uint32_t* bases,
                                            uint32_t* inside) {
  uint32_t sums[kPanelRows] = {};
  for (uint32_t i = 1; i < kCompactWindow; i++) {
    for (int r = 0; r < kPanelRows; r++) sums[r] += counts[i][r];
  }
  for (uint32_t base = 0; base <= kCompactLargestBase; base++) {
    for (int r = 0; r < kPanelRows; r++) {
      sums[r] += counts[base + kCompactWindow][r];
      const bool better = base == 0 || sums[r] > inside[r];
      inside[r] = better ? sums[r] : inside[r];
      bases[r] = better ? base : bases[r];
      sums[r] -= counts[base + 1][r];
    }
  }
}

void survey_panel(const CompactPanelsArgs& args, int64_t panel) {
  const int32_t blocks = blocks_of(args.in);
  alignas(64) uint32_t counts[kExponents][kPanelRows] = {};
  alignas(64) uint32_t bases[kPanelRows], inside[kPanelRows];
  const uint8_t* elements = plain_panel(args, panel);
  count_exponents(elements, blocks, counts);
  run_vectorized([&]() NIBBLET_VECTORIZED { choose_bases(counts, bases, inside); });
  CompactPanel& about = args.panels[panel];
  about.first = about.count = 0;
  for (int r = 0; r < kPanelRows; r++) {
    about.bases[r] = uint8_t(bases[r]);
    about.count += uint32_t(blocks * kBlockInputs) - inside[r];
  }
  // Zeros have the exponent of subnormals, and fit everywhere.
  for (int32_t i = 0; i < blocks * kRegisters * kPanelRows; i++) {
    const uint32_t pair = load_word(elements + size_t(i) * 4);
    about.count -= uint32_t((pair & 0x7fff) == 0) + uint32_t((pair & 0x7fff0000) == 0);
  }
}

/// compact_reduced without branches. `exceptions` becomes nonzero where it is one.
NIBBLET_VECTORIZED inline uint32_t reduced(uint32_t bits, uint32_t base, uint32_t& exceptions) {
  const bool inside = (bits >> 7 & 0xff) - base - 1 < kCompactWindow, zero = (bits & 0x7fff) == 0;
  exceptions |= inside | zero ? 0u : 1u;
  return inside ? bits - (base << 7) : zero ? bits : 0u;
}

/// @return whether there is an exception in the block
NIBBLET_VECTORIZED inline bool compact_block(const uint8_t* from, const uint32_t* bases, uint8_t* to) {
  alignas(64) uint32_t planes[4][kPanelRows] = {}, exponents[2][kPanelRows] = {};
  alignas(64) uint32_t exceptions[kPanelRows] = {};
#pragma GCC unroll 8
  for (int i = 0; i < kRegisters; i++) {
    alignas(64) uint32_t pairs[kPanelRows];
    std::memcpy(pairs, from + i * 64, sizeof pairs);
    for (int r = 0; r < kPanelRows; r++) {
      const uint32_t low = reduced(pairs[r] & 0xffff, bases[r], exceptions[r]);
      const uint32_t pair = low | reduced(pairs[r] >> 16, bases[r], exceptions[r]) << 16;
      planes[i / 2][r] |= compact_plane_bits(pair, i);
      exponents[i / 4][r] |= compact_exponent_bits(pair, i);
    }
  }
  std::memcpy(to + compact_panel_plane_offset(0), planes, sizeof planes);
  std::memcpy(to + compact_panel_exponent_offset(0), exponents, sizeof exponents);
  uint32_t any = 0;
  for (int r = 0; r < kPanelRows; r++) any |= exceptions[r];
  return any != 0;
}

/// Those of inputs [first, first + 16). @return where the next one goes
uint8_t* list_exceptions(const uint8_t* block, const CompactPanel& about, int32_t first, uint8_t* to) {
  for (uint32_t r = 0; r < kPanelRows; r++) {
    for (int32_t k = 0; k < kBlockInputs; k++) {
      uint16_t bits;
      std::memcpy(&bits, block + panel_element_offset(Format::bf16, int32_t(r), k), sizeof bits);
      if (!is_compact_exception(bits, about.bases[r])) continue;
      const CompactPanelException exception = {uint16_t(first + k), bits, r};
      std::memcpy(to, &exception, sizeof exception);
      to += sizeof exception;
    }
  }
  return to;
}

void compact_panel(const CompactPanelsArgs& args, int64_t panel) {
  const CompactPanel& about = args.panels[panel];
  alignas(64) uint32_t bases[kPanelRows];
  for (int r = 0; r < kPanelRows; r++) bases[r] = about.bases[r];
  const uint8_t* from = plain_panel(args, panel);
  uint8_t* to = args.compact + size_t(panel) * panel_bytes(Format::compact_bf16, args.in);
  uint8_t* list = args.compact + compact_panel_list_offset(args.out, args.in) +
                  size_t(about.first) * sizeof(CompactPanelException);
  for (int32_t k = 0; k < args.in; k += kBlockInputs) {
    bool exceptions = false;
    run_vectorized([&]() NIBBLET_VECTORIZED { exceptions = compact_block(from, bases, to); });
    if (exceptions) list = list_exceptions(from, about, k, list);
    from += panel_block_bytes(Format::bf16);
    to += panel_block_bytes(Format::compact_bf16);
  }
  std::memcpy(args.compact + compact_panels_offset(args.out, args.in) + size_t(panel) * sizeof about, &about,
              sizeof about);
}

}  // namespace

void survey_compact_panels(const CompactPanelsArgs& args, int, int worker, int workers) {
  const Range range = partition(panels_of(args.out), worker, workers);
  for (int64_t panel = range.first; panel < range.last; panel++) survey_panel(args, panel);
}

uint64_t place_compact_exceptions(CompactPanel* panels, int32_t count) {
  uint64_t all = 0;
  for (int32_t i = 0; i < count; i++) {
    panels[i].first = uint32_t(all);
    all += panels[i].count;
  }
  return all;
}

void compact_panels(const CompactPanelsArgs& args, int, int worker, int workers) {
  const Range range = partition(panels_of(args.out), worker, workers);
  for (int64_t panel = range.first; panel < range.last; panel++) compact_panel(args, panel);
}

uint16_t compact_panel_element(const uint8_t* matrix, int32_t out, int32_t in, int32_t row, int32_t column) {
  const int32_t panel = row / kPanelRows, lane = row % kPanelRows;
  CompactPanel about;
  std::memcpy(&about, matrix + compact_panels_offset(out, in) + size_t(panel) * sizeof about, sizeof about);
  const uint8_t* list = matrix + compact_panel_list_offset(out, in);
  for (uint32_t i = 0; i < about.count; i++) {
    CompactPanelException exception;
    std::memcpy(&exception, list + (size_t(about.first) + i) * sizeof exception, sizeof exception);
    if (int32_t(exception.row) == lane && exception.input == column) return exception.bits;
  }
  const uint8_t* block = matrix + size_t(panel) * panel_bytes(Format::compact_bf16, in) +
                         size_t(column / kBlockInputs) * panel_block_bytes(Format::compact_bf16);
  const int i = column % kBlockInputs / 2;
  const uint32_t word =
      compact_register(load_word(block + compact_panel_plane_offset(i / 2) + size_t(lane) * 4),
                       load_word(block + compact_panel_exponent_offset(i / 4) + size_t(lane) * 4), i);
  return uint16_t(compact_restored(word >> (16 * (column % 2)) & 0xffff, about.bases[lane]));
}

}  // namespace nibblet
