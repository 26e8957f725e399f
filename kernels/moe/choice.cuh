#pragma once

#include "kernels/moe/route.cuh"

/// The choice of experts for one token by a warp in registers, for kernels in which every warp makes it: 25 instructions an
/// expert chosen and no barrier. A choice that all threads of a block shared took 1.2 us between two barriers, and one by
/// a single warp that the others waited for took longer (nano-30b on an H100).
namespace nibblet {

/// Lane l has experts l, l + 32, and so on. All lanes make every call.
template <int kKeys>
class MoeWarpChoice {
 public:
  static constexpr int32_t kMost = 32 * kKeys;  ///< experts

  /// Biases are constants: this may run before the dependency wait.
  __device__ explicit MoeWarpChoice(const MoeArgs& args) {
#pragma unroll
    for (int j = 0; j < kKeys; ++j) bias_[j] = expert(j) < args.experts ? args.bias[expert(j)] : 0.0f;
  }

  /// @param scores  of the token's experts
  __device__ void read(const MoeArgs& args, const float* scores) {
#pragma unroll
    for (int j = 0; j < kKeys; ++j) scores_[j] = expert(j) < args.experts ? __ldcg(scores + expert(j)) : 0.0f;
  }

  /// @param chosen  [top_k] shared memory of the warp: the experts, ascending
  __device__ void choose(const MoeArgs& args, int32_t* chosen) {
    uint32_t keys[kKeys];
#pragma unroll
    for (int j = 0; j < kKeys; ++j) {
      keys[j] = expert(j) < args.experts ? moe_key(scores_[j] + bias_[j]) : 0u;
    }
    uint32_t own = 0;
#pragma unroll 1
    for (int32_t i = 0; i < args.top_k; ++i) {
      uint32_t best = keys[0];
#pragma unroll
      for (int j = 1; j < kKeys; ++j) best = max(best, keys[j]);
      best = __reduce_max_sync(kAllLanes, best);
      // Lower numbers first among equals.
      uint32_t index = ~0u;
#pragma unroll
      for (int j = kKeys - 1; j >= 0; --j) index = keys[j] == best ? uint32_t(expert(j)) : index;
      index = __reduce_min_sync(kAllLanes, index);
#pragma unroll
      for (int j = 0; j < kKeys; ++j) {
        if (index != uint32_t(expert(j))) continue;
        keys[j] = 0;
        own |= 1u << j;
      }
    }
    int32_t place = 0;
#pragma unroll
    for (int j = 0; j < kKeys; ++j) {
      const uint32_t votes = __ballot_sync(kAllLanes, (own >> j & 1) != 0);
      places_[j] = (own >> j & 1) != 0 ? place + __popc(votes & ((1u << lane()) - 1)) : -1;
      if (places_[j] >= 0) chosen[places_[j]] = expert(j);
      place += __popc(votes);
    }
    __syncwarp();
  }

  /// Stores what was chosen and its weights, for the kernels that follow. @param found  [top_k] shared memory
  __device__ void store(const MoeArgs& args, const int32_t* chosen, float* found, int32_t* to_chosen,
                        float* to_weights) const {
#pragma unroll
    for (int j = 0; j < kKeys; ++j) {
      if (places_[j] >= 0) found[places_[j]] = scores_[j];
    }
    __syncwarp();
    float sum = 0;
#pragma unroll 1
    for (int32_t k = 0; k < args.top_k; ++k) sum += found[k];
#pragma unroll 1
    for (int32_t k = lane(); k < args.top_k; k += 32) {
      to_chosen[k] = chosen[k];
      to_weights[k] = (args.normalize ? found[k] / (sum + 1e-20f) : found[k]) * args.scale;
    }
  }

 private:
  static constexpr uint32_t kAllLanes = 0xffffffffu;
  static __device__ int32_t lane() { return int32_t(threadIdx.x) % 32; }
  static __device__ int32_t expert(int j) { return lane() + 32 * j; }

  float bias_[kKeys], scores_[kKeys];
  int32_t places_[kKeys];  ///< among the chosen, or -1
};

}  // namespace nibblet
