#include <cstring>

#include "test/emulator/block.h"
#include "test/emulator/device.h"

namespace nibblet::emulated {
namespace {

/// The 64 bits of an mbarrier.
struct State {
  uint32_t pending;   ///< arrivals that the phase still wants
  uint32_t expected;  ///< arrivals of each phase
  int32_t bytes;      ///< of copies, that the phase still wants
  uint32_t phase;
};

constexpr int count_bits = 20, byte_bits = 23;

State load(const uint64_t* barrier) {
  const uint64_t bits = *barrier;
  auto field = [&](int from, int count) { return uint32_t(bits >> from & ((uint64_t{1} << count) - 1)); };
  return {field(0, count_bits), field(count_bits, count_bits),
          int32_t(field(2 * count_bits, byte_bits)) - (1 << (byte_bits - 1)), field(63, 1)};
}

/// Ends the phase when nothing is missing.
void store(uint64_t* barrier, State state) {
  if (state.pending == 0 && state.bytes == 0) {
    state.pending = state.expected;
    state.phase ^= 1;
  }
  *barrier = uint64_t(state.pending) | uint64_t(state.expected) << count_bits |
             uint64_t(uint32_t(state.bytes + (1 << (byte_bits - 1)))) << (2 * count_bits) |
             uint64_t(state.phase) << 63;
}

}  // namespace

void mbarrier_init(uint64_t* barrier, uint32_t count, Place where) {
  check_alignment(barrier, 8, "an mbarrier", where);
  if (count == 0 || count >> count_bits != 0)
    fault("an mbarrier of " + std::to_string(count) + " arrivals", where);
  store(barrier, {count, count, 0, 0});
}

void mbarrier_arrive(uint64_t* barrier, uint32_t expected_bytes, Place where) {
  State state = load(barrier);
  if (state.expected == 0 || state.pending == 0)
    fault("more threads arrive at an mbarrier than a phase of it expects", where);
  state.bytes += int32_t(expected_bytes);
  --state.pending;
  store(barrier, state);
}

bool mbarrier_try_wait(uint64_t* barrier, uint32_t parity, Place where) {
  State state = load(barrier);
  if (state.expected == 0) fault("waits for an mbarrier before it was initialised", where);
  if (state.phase == (parity & 1) && state.pending == 0) {
    auto& copies = Processor::current().bulk_copies();
    for (const BulkCopy& bulk : copies) {
      if (bulk.barrier != barrier) continue;
      std::memcpy(bulk.copy.to, bulk.copy.from, bulk.copy.bytes);
      state.bytes -= int32_t(bulk.copy.bytes);
    }
    std::erase_if(copies, [&](const BulkCopy& bulk) { return bulk.barrier == barrier; });
    store(barrier, state);
    state = load(barrier);
  }
  return state.phase != (parity & 1);
}

void mbarrier_wait(uint64_t* barrier, uint32_t parity, Place where) {
  while (!mbarrier_try_wait(barrier, parity, where)) yield(where);
}

void copy_bulk(void* shared, const void* from, uint32_t bytes, uint64_t* barrier, Place where) {
  check_alignment(shared, 16, "cp.async.bulk to", where);
  check_alignment(from, 16, "cp.async.bulk from", where);
  if (bytes % 16 != 0) fault("cp.async.bulk of " + std::to_string(bytes) + " bytes", where);
  std::memset(shared, 0xee, bytes);
  Processor::current().bulk_copies().push_back({{shared, from, bytes}, barrier});
}

}  // namespace nibblet::emulated
