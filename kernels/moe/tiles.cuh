#pragma once

#include "kernels/cuda/device.h"
#include "kernels/moe/lists.cuh"
#include "kernels/moe/plan.h"
#include "kernels/numerics/bf16.h"

/// What the kernels for many tokens share: which tokens a tile has, and where their inputs and outputs lie.
namespace nibblet {

/// One tile of tokens of one expert, in `up` or in `down`.
template <bool down>
struct MoeTileProduct {
  const MoePlan& plan;
  const int32_t* entries;  ///< MoeLists
  MoeTile tile;

  __device__ bool shared() const { return tile.expert == plan.args.experts; }
  __device__ const WeightView& weight() const {
    if constexpr (down) return shared() ? plan.args.shared_down : plan.args.down;
    return shared() ? plan.args.shared_up : plan.args.up;
  }
  __device__ int32_t matrix() const { return shared() ? 0 : tile.expert; }
  __device__ const uint8_t* data() const { return weight().data + size_t(matrix()) * weight().matrix_bytes; }
  /// Of token i of the tile: the entry, or for the shared expert the token.
  __device__ int32_t entry(int32_t i) const { return shared() ? tile.first + i : entries[tile.first + i]; }
  __device__ const uint16_t* input(int32_t i) const {
    const int32_t e = entry(i);
    if constexpr (down) {
      return shared() ? plan.shared + size_t(e) * size_t(plan.shared_stride)
                      : plan.hidden + size_t(e) * size_t(plan.width_stride);
    }
    return plan.normed + size_t(shared() ? e : e / plan.args.top_k) * size_t(plan.normed_stride);
  }

  /// Of an output row; zeros where rows pad the matrix.
  struct Row {
    float scale, bias;
  };
  __device__ Row row(int32_t row) const {
    const WeightView& view = weight();
    if (row >= view.out) return {0, 0};
    const MoeArgs& args = plan.args;
    const float* bias = down ? (shared() ? args.shared_down_bias : args.down_bias)
                             : (shared() ? args.shared_up_bias : args.up_bias);
    const size_t index = size_t(matrix()) * size_t(view.out) + size_t(row);
    return {view.row_scales[index], bias == nullptr ? 0.0f : bias[index]};
  }

  /// @param sum  row `index` times the inputs of token i, without row scale
  __device__ void store(int32_t i, int32_t index, float sum, const Row& row) const {
    const MoeArgs& args = plan.args;
    const int32_t e = entry(i);
    sum = sum * row.scale + row.bias;
    if constexpr (down) {
      if (index >= weight().out) return;
      const int32_t token = shared() ? e : e / args.top_k;
      const int32_t part = shared() ? args.top_k : e % args.top_k;
      plan.outputs[(size_t(token) * size_t(plan.parts) + size_t(part)) * size_t(args.hidden) +
                   size_t(index)] = shared() ? sum : sum * __ldcg(plan.weights + e);
    } else {
      // Not a maximum with 0: a NaN must stay one.
      const float value = sum < 0.0f ? 0.0f : sum * sum;
      uint16_t* to = shared() ? plan.shared + size_t(e) * size_t(plan.shared_stride)
                              : plan.hidden + size_t(e) * size_t(plan.width_stride);
      to[index] = bf16_from_float(value);
    }
  }
};

/// Tiles of one launch in the order of their work: the shared expert's, which has the most tokens, before the others.
struct MoeTiles {
  const MoePlan& plan;
  MoeLists lists;
  int32_t tokens;
  int32_t shared;  ///< how many
  int32_t routed;

  /// By all threads of a block. @param memory  MoeLists::bytes(plan) of shared memory
  __device__ MoeTiles(const MoePlan& p, uint32_t sets, void* memory)
      : plan(p), lists(p, p.step->tokens, memory), tokens(p.step->tokens) {
    routed = sets & kMoeRouted ? lists.tile_count : 0;
    shared = sets & kMoeShared ? (tokens + kMoeTileTokens - 1) / kMoeTileTokens : 0;
  }
  __device__ int32_t count() const { return shared + routed; }
  __device__ MoeTile operator[](int32_t i) const {
    if (i >= shared) return lists.tiles[i - shared];
    return {plan.args.experts, i * kMoeTileTokens, min(tokens - i * kMoeTileTokens, kMoeTileTokens)};
  }
};

/// Items of one tile and one of `pieces` parts of its rows, those of the shared expert's tiles side by side, since they
/// read the same weights. Every tile has as many pieces.
struct MoeItem {
  MoeTile tile;
  int32_t piece;

  __device__ MoeItem(const MoeTiles& tiles, int32_t item, int32_t pieces) {
    const int32_t routed = item - tiles.shared * pieces;
    const bool is_shared = routed < 0;
    piece = is_shared ? item / tiles.shared : routed % pieces;
    tile = tiles[is_shared ? item % tiles.shared : tiles.shared + routed / pieces];
  }
};

/// `down` for weights in Layout::columns: all columns are read.
cudaError_t moe_down_columns_dense(const MoePlan& plan, uint32_t sets, const CudaTarget& target);

}  // namespace nibblet
