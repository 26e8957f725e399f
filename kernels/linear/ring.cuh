#pragma once

#include "kernels/linear/fragments.cuh"

namespace nibblet {

/// Consecutive units of weights on their way through slots in shared memory, for one warp. All its lanes make every call.
/// With kBulk the copy engine fills the slots (sm_90 and up, any number of stages), otherwise the lanes do, and there are
/// kCopyStages stages.
template <Format format, bool kBulk>
class UnitRing {
 public:
  static constexpr int kCopyStages = 6;
  static constexpr uint32_t kBytes = uint32_t(fragment_unit_bytes(format));

  /// Starts the first copies. @param slots  stages · kBytes, 128-byte aligned  @param barriers  one a stage
  __device__ __forceinline__ UnitRing(uint8_t* slots, uint64_t* barriers, int stages, const uint8_t* source,
                                      int32_t units, int lane)
      : slots_(slots),
        barriers_(barriers),
        stages_(kBulk ? stages : kCopyStages),
        source_(source),
        left_(units),
        lane_(lane),
        policy_(evict_first_policy()) {
    if constexpr (kBulk) {
      if (lane == 0) {
        for (int stage = 0; stage < stages_; stage++) mbarrier_init(barriers_ + stage, 1);
        mbarrier_init_fence();
      }
      __syncwarp();
    }
    for (stage_ = 0; stage_ < stages_; stage_++) fetch(stage_ < units);
    stage_ = 0;
  }

  /// Waits for the next unit. @return its slot
  __device__ __forceinline__ const uint8_t* wait() {
    if constexpr (kBulk) {
      mbarrier_wait(barriers_ + stage_, parity_);
    } else {
      copy_async_wait<kCopyStages - 1>();
      __syncwarp();
    }
    return slots_ + uint32_t(stage_) * kBytes;
  }

  /// Fills the slot anew; the warp has read what it wants of it.
  __device__ __forceinline__ void release() {
    __syncwarp();
    fetch(left_ > stages_);
    left_--;
    if (++stage_ == stages_) {
      stage_ = 0;
      parity_ ^= 1;
    }
  }

 private:
  __device__ __forceinline__ void fetch(bool wanted) {
    uint8_t* slot = slots_ + uint32_t(stage_) * kBytes;
    if constexpr (kBulk) {
      if (wanted && lane_ == 0) {
        mbarrier_arrive(barriers_ + stage_, kBytes);
        copy_bulk(slot, source_, kBytes, barriers_ + stage_, policy_);
      }
    } else {
      if (wanted) fragments::copy_unit<format>(slot, source_, lane_);
      copy_async_commit();
    }
    source_ += kBytes;
  }

  uint8_t* slots_;
  uint64_t* barriers_;
  int stages_;
  const uint8_t* source_;
  int32_t left_;
  int lane_;
  uint64_t policy_;
  int stage_;
  uint32_t parity_ = 0;
};

}  // namespace nibblet
