#pragma once

#include <cmath>
#include <cstddef>

#include "kernels/mamba/mamba.h"

namespace nibblet {

/// Offsets into a row of `projected` and of `convolved` that follow from the shape of a Mamba layer.
struct MambaShape {
  int32_t inner;     ///< heads · head_dim
  int32_t channels;  ///< of the convolution: x | B | C
  int32_t row;       ///< of `projected`: z | x B C | dt

  NIBBLET_HD explicit MambaShape(const MambaArgs& args)
      : inner(args.heads * args.head_dim),
        channels(inner + 2 * args.groups * args.state),
        row(inner + channels + args.heads) {}

  /// Index of channel 0 of token t in `projected`.
  NIBBLET_HD size_t channel_row(int32_t t) const { return size_t(t) * row + inner; }
  /// Index of head 0's dt of token t in `projected`.
  NIBBLET_HD size_t dt_row(int32_t t) const { return size_t(t) * row + inner + channels; }
};

NIBBLET_HD inline float silu(float x) { return x / (1 + std::exp(-x)); }
NIBBLET_HD inline float softplus(float x) { return x > 20 ? x : std::log1p(std::exp(x)); }

}  // namespace nibblet
