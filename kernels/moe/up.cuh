#pragma once

#include "kernels/linear/fragments.cuh"
#include "kernels/moe/plan.h"

/// How a block of `up` for one token goes through the matrices of the shared and of the chosen experts. What divides is done
/// before the dependency wait, when nobody waits for it.
namespace nibblet::moe_up {

using namespace fragments;

constexpr Format nvfp4 = Format::nvfp4;
constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;
/// Row tiles that a block works on at once.
constexpr int kPassTiles = 8;

/// The row tiles of one pass of a block: tile i is number blockIdx.x + (first + i) · gridDim.x of all, the shared expert's
/// before those of the chosen, in which a warp multiplies every kWarps-th unit.
struct Pass {
  const MoePlan& plan;
  int32_t units;         ///< of a tile
  int32_t shared_tiles;  ///< of the shared expert
  int32_t routed_tiles;  ///< of one routed expert
  int32_t first;
  int32_t tiles;

  __device__ Pass(const MoePlan& p, int32_t first_tile) : plan(p), first(first_tile) {
    units = fragment_units(nvfp4, p.args.hidden);
    shared_tiles = p.has_shared() ? round_up(p.args.shared_up.out, kFragmentRows) / kFragmentRows : 0;
    routed_tiles = round_up(p.args.up.out, kFragmentRows) / kFragmentRows;
    tiles = min(of_block() - first, kPassTiles);
  }
  __device__ int32_t of_block() const {
    const int32_t all = shared_tiles + routed_tiles * plan.args.top_k;
    return (all - int32_t(blockIdx.x) + int32_t(gridDim.x) - 1) / int32_t(gridDim.x);
  }
  __device__ int32_t number(int32_t tile) const {
    return int32_t(blockIdx.x) + (first + tile) * int32_t(gridDim.x);
  }
  __device__ bool is_shared(int32_t tile) const { return number(tile) < shared_tiles; }

  /// Of a routed tile: which of the chosen experts, and which tile of it.
  __device__ int32_t slot(int32_t tile) const { return (number(tile) - shared_tiles) / routed_tiles; }
  __device__ int32_t place(int32_t tile) const { return (number(tile) - shared_tiles) % routed_tiles; }
};

/// Where the weights of a tile start: of the shared expert at once, of a routed one when it is known which.
struct TileStart {
  uint64_t address = 0;
  int32_t slot = -1;  ///< of the chosen; -1 when nothing is to be added

  __device__ TileStart(const Pass& pass, int32_t tile) {
    if (tile >= pass.tiles) return;
    const MoeArgs& args = pass.plan.args;
    const bool shared = pass.is_shared(tile);
    if (!shared) slot = pass.slot(tile);
    const int32_t place = shared ? pass.number(tile) : pass.place(tile);
    address = reinterpret_cast<uint64_t>(shared ? args.shared_up.data : args.up.data) +
              size_t(place) * (size_t(pass.units) * fragment_unit_bytes(nvfp4));
  }
  __device__ void locate(const MoeArgs& args, const int32_t* chosen) {
    if (slot >= 0) address += size_t(chosen[slot]) * args.up.matrix_bytes;
  }
};

/// Where a warp is in its units of a pass.
struct Walk {
  int32_t tile = 0;
  int32_t unit;
  __device__ Walk(int32_t warp, int32_t units) : unit(warp) { carry(units); }
  __device__ void next(int32_t units) {
    unit += kWarps;
    carry(units);
  }
  __device__ void carry(int32_t units) {
    while (unit >= units) {
      unit -= units;
      ++tile;
    }
  }
};

/// Scale, bias and place of one output row.
struct Row {
  float scale = 0;
  float bias = 0;
  uint16_t* to = nullptr;
  bool exists = false;  ///< unless it pads the matrix
  int32_t slot = -1;    ///< of the chosen, for locate()
  int32_t in_matrix;

  __device__ Row(const Pass& pass, int32_t row) : in_matrix(row % kFragmentRows) {
    const MoePlan& plan = pass.plan;
    const MoeArgs& args = plan.args;
    const int32_t tile = row / kFragmentRows;
    if (tile >= pass.tiles) return;
    if (pass.is_shared(tile)) {
      in_matrix += pass.number(tile) * kFragmentRows;
      exists = in_matrix < args.shared_up.out;
      to = plan.shared + in_matrix;
      if (exists) scale = args.shared_up.row_scales[in_matrix];
      if (exists && args.shared_up_bias != nullptr) bias = args.shared_up_bias[in_matrix];
    } else {
      slot = pass.slot(tile);
      in_matrix += pass.place(tile) * kFragmentRows;
      exists = in_matrix < args.up.out;
      to = plan.hidden + slot * plan.width_stride + in_matrix;
    }
  }
  __device__ void locate(const MoeArgs& args, const int32_t* chosen) {
    if (slot < 0 || !exists) return;
    const size_t index = size_t(chosen[slot]) * size_t(args.up.out) + size_t(in_matrix);
    scale = args.up.row_scales[index];
    if (args.up_bias != nullptr) bias = args.up_bias[index];
  }
  __device__ void write(float sum) const {
    if (to == nullptr) return;
    float value = exists ? sum * (kOneTokenScale<nvfp4> * scale) + bias : 0.0f;
    // Not a maximum with 0: a NaN must stay one.
    value = value < 0.0f ? 0.0f : value * value;
    *to = bf16_from_float(value);
  }
};

}  // namespace nibblet::moe_up
