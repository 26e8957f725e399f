#pragma once

#include "kernels/cuda/launch.h"
#include "kernels/moe/moe.h"
#include "kernels/step.h"

namespace nibblet {

/// Tokens of one expert that share a pass over its weights: the columns of a tensor core's second operand.
constexpr int32_t kMoeTileTokens = 8;

/// Inputs whose part of the router's logits is summed at a time.
constexpr int32_t kMoeSlice = 128;
/// Most tokens of which every block makes its own lists.
constexpr int32_t kMoeListedTokens = 64;
/// Blocks of 16 inputs whose live columns a block of `down` can list at a time.
constexpr int32_t kMoeListBlocks = 128;

/// Up to kMoeTileTokens tokens of one expert.
struct MoeTile {
  int32_t expert;  ///< `experts`: the shared one
  int32_t first;   ///< index into MoePlan::entries; for the shared expert the token
  int32_t count;
};

/// How a call of moe_cuda is carried out: passed to its kernels by value. An entry is a token's use of a routed expert, an
/// index into `chosen`; a slot is one of a token's entries, or top_k for its shared expert.
struct MoePlan {
  MoeArgs args;
  const Step* step;
  bool alone;        ///< one token, whose experts are nvfp4: no lists, `up` chooses for itself
  bool skips;        ///< `down` is in columns, of which only those of nonzero activations are read
  bool local_lists;  ///< each block makes `entries` and `tiles` for itself
  int32_t slices;    ///< of the inputs, for the router; unless alone
  bool vectors;      ///< rows of x, norm and router can be read 16 bytes at a time
  int32_t normed_stride;
  int32_t width_stride;
  int32_t shared_stride;
  int32_t routed_splits;  ///< parts that the columns of one routed expert are cut into
  int32_t shared_splits;
  int32_t parts;  ///< partial sums of one token
  /// [experts] sigmoid of the router's logits; unless alone [slices, tokens, experts] parts of logits
  float* scores;
  float* squares;    ///< [slices, tokens] of x; unless alone
  float* weights;    ///< [tokens, top_k]
  int32_t* chosen;   ///< [tokens, top_k] ascending
  uint16_t* normed;  ///< [tokens, normed_stride] x̂ in bf16, zero padding; unless alone
  uint16_t* hidden;  ///< [tokens, top_k, width_stride] bf16, zero padding up to a multiple of 16
  uint16_t* shared;  ///< [tokens, shared_stride] likewise
  float* outputs;    ///< [tokens, parts, hidden] what is added to x, in the order of parts
  int32_t* entries;  ///< [tokens · top_k] by expert, then token
  MoeTile* tiles;    ///< of the routed experts
  int32_t* tile_count;
  uint32_t* arrivals;  ///< counters
  CudaScratch scratch;

  NIBBLET_HD bool has_shared() const { return args.shared_up.data != nullptr; }
};

/// Which experts a launch works on.
enum MoeSet : uint32_t { kMoeRouted = 1, kMoeShared = 2 };
/// Most tiles that args.tokens tokens can make.
int64_t moe_most_tiles(const MoeArgs& args, uint32_t sets);

/// Whether moe_up_alone has the shared memory that it needs.
bool moe_up_alone_fits(const MoeArgs& args, const CudaTarget& target);
/// @param workspace, counters may be null, for `scratch` alone
MoePlan moe_plan(const MoeArgs& args, const Step* step, void* workspace, void* counters,
                 const CudaTarget& target);

/// The kernels of a call.
cudaError_t moe_route(const MoePlan& plan, const CudaTarget& target);
/// Unless `local_lists`: the entries and tiles of each expert, as a part of moe_route.
cudaError_t moe_list(const MoePlan& plan, const CudaTarget& target);
cudaError_t moe_up_alone(const MoePlan& plan, const CudaTarget& target);
cudaError_t moe_up_tiles(const MoePlan& plan, const CudaTarget& target);
/// With `skips`: for one token with the least latency, for several with the least work.
cudaError_t moe_down_skip(const MoePlan& plan, const CudaTarget& target);
cudaError_t moe_down_gather(const MoePlan& plan, const CudaTarget& target);
cudaError_t moe_down(const MoePlan& plan, const CudaTarget& target);
cudaError_t moe_down_tiles(const MoePlan& plan, const CudaTarget& target);
cudaError_t moe_count(const MoePlan& plan, uint64_t* statistics, const CudaTarget& target);

}  // namespace nibblet
