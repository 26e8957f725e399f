#include <algorithm>

#include "kernels/moe/cuda.h"
#include "kernels/moe/plan.h"

namespace nibblet {
namespace {

/// Most tokens for which each token's live columns are read for itself: they are few, and the cache holds what tokens share.
constexpr int32_t kSkipTokens = 64;
/// Fewest blocks of 16 inputs of a part.
constexpr int32_t kPartBlocks = 8;
/// Most tokens whose parts are cut in two, so that there are enough of them for all multiprocessors.
constexpr int32_t kCutTokens = 8;

bool is_fragments(const WeightView& view) { return view.layout == Layout::fragments; }
bool is_columns(const WeightView& view) {
  return view.layout == Layout::columns && view.format == Format::nvfp4;
}
bool is_rows(const WeightView& view) { return view.layout == Layout::rows && view.format == Format::f32; }
bool is_four_bit(const WeightView& view) { return is_fragments(view) && view.format == Format::nvfp4; }

bool is_aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

bool is_supported(const MoeArgs& args) {
  const auto up = [](const WeightView& view) { return is_fragments(view) || is_rows(view); };
  const auto down = [&](const WeightView& view) { return up(view) || is_columns(view); };
  return !args.exact && up(args.up) && down(args.down) &&
         (args.shared_up.data == nullptr || (up(args.shared_up) && down(args.shared_down)));
}

int32_t blocks_of(int32_t in) { return std::max(1, round_up(in, kBlockInputs) / kBlockInputs); }

/// Cuts the columns of one token's experts into parts of about one length: as many as can be worked on at once.
void split_columns(MoePlan& plan, const CudaTarget& target) {
  const MoeArgs& args = plan.args;
  const int32_t routed = blocks_of(args.down.in);
  const int32_t shared = plan.has_shared() ? blocks_of(args.shared_down.in) : 0;
  const int32_t chunks = round_up(args.hidden, kColumnRows) / kColumnRows;
  const auto splits = [](int32_t blocks, int32_t length) {
    return std::clamp((blocks + length / 2) / length, 1, std::max(1, blocks / kPartBlocks));
  };
  for (int32_t cuts = 1;; ++cuts) {
    const int32_t length = std::max(1, routed / cuts);
    const int32_t routed_splits = splits(routed, length), shared_splits = splits(shared, length);
    const int32_t parts = routed_splits * args.top_k + (plan.has_shared() ? shared_splits : 0);
    const bool fits = int64_t(parts) * chunks <= 3 * int64_t(target.multiprocessors);
    if (cuts > 1 && (!fits || length < kPartBlocks)) return;
    plan.routed_splits = routed_splits;
    plan.shared_splits = shared_splits;
    plan.parts = parts;
  }
}

/// The columns of several tokens' experts: in parts that can be listed, few unless there are few tokens.
void share_columns(MoePlan& plan) {
  const MoeArgs& args = plan.args;
  const auto splits = [&](int32_t blocks) {
    const int32_t needed = (blocks + kMoeListBlocks - 1) / kMoeListBlocks;
    return args.tokens <= kCutTokens && blocks >= 2 * needed * kPartBlocks ? 2 * needed : needed;
  };
  plan.routed_splits = splits(blocks_of(args.down.in));
  plan.shared_splits = plan.has_shared() ? splits(blocks_of(args.shared_down.in)) : 1;
  plan.parts = plan.routed_splits * args.top_k + (plan.has_shared() ? plan.shared_splits : 0);
}

/// Cuts an area into arrays, each at a multiple of 256 bytes.
class Area {
 public:
  explicit Area(void* start) : start_(static_cast<uint8_t*>(start)) {}
  template <class T>
  void take(T*& array, size_t count) {
    array = start_ == nullptr ? nullptr : reinterpret_cast<T*>(start_ + bytes_);
    bytes_ += (count * sizeof(T) + 255) / 256 * 256;
  }
  size_t bytes() const { return bytes_; }

 private:
  uint8_t* start_;
  size_t bytes_ = 0;
};

}  // namespace

int64_t moe_most_tiles(const MoeArgs& args, uint32_t sets) {
  const int64_t entries = int64_t(args.tokens) * args.top_k;
  int64_t tiles = 0;
  if (sets & kMoeRouted) tiles += std::min(entries, entries / kMoeTileTokens + args.experts);
  if (sets & kMoeShared) tiles += (int64_t(args.tokens) + kMoeTileTokens - 1) / kMoeTileTokens;
  return tiles;
}

MoePlan moe_plan(const MoeArgs& args, const Step* step, void* workspace, void* counters,
                 const CudaTarget& target) {
  MoePlan plan = {};
  plan.args = args;
  plan.step = step;
  plan.skips = is_columns(args.down) && (!plan.has_shared() || is_columns(args.shared_down)) &&
               args.tokens <= kSkipTokens;
  plan.vectors =
      args.hidden % 4 == 0 && is_aligned(args.x) && is_aligned(args.norm) && is_aligned(args.router);
  plan.alone = args.tokens == 1 && plan.skips && plan.vectors && is_four_bit(args.up) &&
               (!plan.has_shared() || is_four_bit(args.shared_up)) && moe_up_alone_fits(args, target);
  plan.local_lists = args.tokens <= kMoeListedTokens;
  plan.slices = plan.alone ? 1 : round_up(args.hidden, kMoeSlice) / kMoeSlice;
  plan.normed_stride = round_up(args.hidden, 128);
  plan.width_stride = round_up(args.up.out, kFragmentRows);
  plan.shared_stride = plan.has_shared() ? round_up(args.shared_up.out, kFragmentRows) : 0;
  plan.routed_splits = plan.shared_splits = 1;
  plan.parts = args.top_k + (plan.has_shared() ? 1 : 0);
  if (plan.skips && args.tokens == 1) split_columns(plan, target);
  if (plan.skips && args.tokens > 1) share_columns(plan);

  const size_t tokens = size_t(args.tokens), entries = tokens * size_t(args.top_k);
  Area area(workspace);
  area.take(plan.scores, size_t(plan.slices) * tokens * size_t(args.experts));
  area.take(plan.squares, size_t(plan.slices) * tokens);
  area.take(plan.weights, entries);
  area.take(plan.chosen, entries);
  area.take(plan.hidden, entries * size_t(plan.width_stride));
  area.take(plan.shared, tokens * size_t(plan.shared_stride));
  area.take(plan.outputs, tokens * size_t(plan.parts) * size_t(args.hidden));
  area.take(plan.normed, tokens * size_t(plan.normed_stride));
  area.take(plan.entries, entries);
  area.take(plan.tiles, size_t(moe_most_tiles(args, kMoeRouted)));
  area.take(plan.tile_count, 1);
  plan.scratch.workspace = area.bytes();
  Area counted(counters);
  if (plan.skips) {
    counted.take(plan.arrivals, tokens * size_t(round_up(args.hidden, kColumnRows) / 32));
  }
  plan.scratch.counters = counted.bytes();
  return plan;
}

CudaScratch moe_cuda_scratch(const MoeArgs& args, const CudaTarget& target) {
  return moe_plan(args, nullptr, nullptr, nullptr, target).scratch;
}

cudaError_t moe_down(const MoePlan& plan, const CudaTarget& target) {
  if (!plan.skips) return moe_down_tiles(plan, target);
  return plan.args.tokens == 1 ? moe_down_skip(plan, target) : moe_down_gather(plan, target);
}

cudaError_t moe_cuda(const MoeArgs& args, const Step* step, uint64_t* statistics, void* workspace,
                     void* counters, const CudaTarget& target) {
  if (!is_supported(args)) return cudaErrorInvalidValue;
  const MoePlan plan = moe_plan(args, step, workspace, counters, target);
  cudaError_t error = moe_route(plan, target);
  if (error == cudaSuccess) error = plan.alone ? moe_up_alone(plan, target) : moe_up_tiles(plan, target);
  if (error == cudaSuccess) error = moe_down(plan, target);
  if (error == cudaSuccess && statistics != nullptr) error = moe_count(plan, statistics, target);
  return error;
}

}  // namespace nibblet
