#pragma once

#include "kernels/linear/fragments.cuh"

namespace nibblet {

/// Consecutive units of weights on their way through shared memory, for one warp: two units a stage, so that what a stage
/// costs in instructions is shared. All lanes make every call.
template <Format format, int kStages>
class UnitRing {
 public:
  static constexpr int kStageUnits = 2;
  static constexpr int kUnitBytes = int(fragment_unit_bytes(format));
  static constexpr int kBytes = kStages * kStageUnits * kUnitBytes;

  /// Starts the first copies. @param slots  kBytes, 16-byte aligned
  __device__ __forceinline__ UnitRing(uint8_t* slots, const uint8_t* source, int32_t units, int lane)
      : slots_(slots), source_(source), left_(units), lane_(lane) {
#pragma unroll
    for (int stage = 0; stage < kStages; stage++) fetch(stage * kStageUnits * kUnitBytes);
  }

  /// Waits for the next two units. @return their place; the second is undefined past the last unit
  __device__ __forceinline__ const uint8_t* wait() {
    copy_async_wait<kStages - 1>();
    __syncwarp();
    return slots_ + slot_;
  }

  /// Fills their place anew; the warp has read what it wants of it.
  __device__ __forceinline__ void release() {
    __syncwarp();
    fetch(slot_);
    slot_ += kStageUnits * kUnitBytes;
    if (slot_ == kBytes) slot_ = 0;
  }

 private:
  __device__ __forceinline__ void fetch(int slot) {
    constexpr int kPieces = kStageUnits * kUnitBytes / 16;
    uint8_t* to = slots_ + slot + lane_ * 16;
    const uint8_t* from = source_ + lane_ * 16;
    if (left_ >= kStageUnits) {
#pragma unroll
      for (int first = 0; first < kPieces; first += 32) {
        if (first + 32 <= kPieces || first + lane_ < kPieces) copy_async(to + first * 16, from + first * 16);
      }
    } else if (left_ > 0) {
      fragments::copy_unit<format>(slots_ + slot, source_, lane_);
    }
    copy_async_commit();
    source_ += kStageUnits * kUnitBytes;
    left_ -= kStageUnits;
  }

  uint8_t* slots_;
  const uint8_t* source_;
  int32_t left_;  ///< units not yet asked for
  int lane_;
  int slot_ = 0;
};

}  // namespace nibblet
