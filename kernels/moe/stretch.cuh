#pragma once

#include "kernels/linear/fragments.cuh"
#include "kernels/moe/tiles.cuh"

/// How the blocks of `up` and `down` of many tokens share out the work.
namespace nibblet::moe_stretch {

using namespace fragments;

/// The row tiles of all tiles of tokens in a row, cut into one stretch a block of about equally many units.
template <Format format, bool down>
struct Stretch {
  const MoeTiles& tiles;
  int32_t rows, units;                ///< row tiles of a routed expert, and units of each
  int32_t shared_rows, shared_units;  ///< of all tiles of the shared one, and units of each
  int32_t first, last;

  __device__ explicit Stretch(const MoeTiles& t) : tiles(t) {
    const MoeArgs& args = t.plan.args;
    const WeightView& routed = down ? args.down : args.up;
    const WeightView& shared = down ? args.shared_down : args.shared_up;
    rows = round_up(routed.out, kFragmentRows) / kFragmentRows;
    shared_rows = t.shared * (round_up(shared.out, kFragmentRows) / kFragmentRows);
    units = fragment_units(format, routed.in);
    shared_units = t.shared > 0 ? fragment_units(format, shared.in) : 1;
    const uint32_t all = uint32_t(shared_rows * shared_units + t.routed * rows * units);
    const uint32_t each = all / gridDim.x, rest = all % gridDim.x;
    const uint32_t begin = each * blockIdx.x + min(blockIdx.x, rest);
    first = last = 0;
#pragma unroll 1
    for (int i = 0; i < 2; ++i) {
      first = last;
      last = from_unit(i == 0 ? begin : begin + each + (blockIdx.x < rest));
    }
  }
  /// The first row tile that starts at this unit or later.
  __device__ int32_t from_unit(uint32_t unit) const {
    const uint32_t shared = uint32_t(shared_rows * shared_units);
    const bool in_shared = unit <= shared;
    const uint32_t of_tile = uint32_t(in_shared ? shared_units : units);
    return (in_shared ? 0 : shared_rows) +
           int32_t(((in_shared ? unit : unit - shared) + of_tile - 1) / of_tile);
  }
};

/// The row tiles of a stretch that have one tile of tokens.
template <Format format, bool down>
struct Run {
  MoeTile tile = {};
  int32_t rows = 0;   ///< 0: none is left
  int32_t row = 0;    ///< the first row tile
  int32_t units = 1;  ///< of a row tile

  /// @param number  of the first row tile in the stretch
  __device__ Run(const Stretch<format, down>& stretch, int32_t number) {
    if (number >= stretch.last) return;
    const bool shared = number < stretch.shared_rows;
    const uint32_t in_set = uint32_t(shared ? number : number - stretch.shared_rows);
    const uint32_t in_tile = uint32_t(shared ? stretch.shared_rows / stretch.tiles.shared : stretch.rows);
    const uint32_t index = in_set / in_tile;
    row = int32_t(in_set - index * in_tile);
    tile = stretch.tiles[int32_t(index) + (shared ? 0 : stretch.tiles.shared)];
    rows = min(stretch.last - number, int32_t(in_tile) - row);
    units = shared ? stretch.shared_units : stretch.units;
  }
};

}  // namespace nibblet::moe_stretch
