#include "kernels/cuda/arrive.h"
#include "kernels/sample/choose.cuh"
#include "kernels/sample/cuda.h"
#include "kernels/sample/few.cuh"
#include "kernels/sample/layout.cuh"
#include "kernels/sample/logprobs.cuh"
#include "kernels/sample/mark.cuh"
#include "kernels/sample/row.h"
#include "kernels/sample/spread.cuh"
#include "kernels/sample/survey.cuh"

// Two kernels: in the first one blocks summarise their parts of a row (blockIdx.y), in the second they know the best token
// and the sum of all weights. Then one block of the row picks the token, after all have sorted theirs where it needs that.
namespace nibblet {
namespace {

__device__ void clear_histogram(RowHistogram* histogram) {
  uint4* words = reinterpret_cast<uint4*>(histogram);
  for (unsigned i = blockIdx.x * kSampleThreads + threadIdx.x; i < sizeof(RowHistogram) / sizeof(uint4);
       i += gridDim.x * kSampleThreads)
    words[i] = make_uint4(0, 0, 0, 0);
}

__global__ void __launch_bounds__(kSampleThreads, 2)
    survey_kernel(SampleArgs args, SampleLayout layout, void* workspaces) {
  __shared__ __align__(16) uint8_t shared[sizeof(SurveyShared)];
  grid_dependency_launch();
  grid_dependency_wait();
  const Step step = *args.step;
  const int32_t row = int32_t(blockIdx.y), rows = step.sampling != nullptr ? step.row_count : 0;
  const int32_t first = int32_t(blockIdx.x) * layout.part_tokens;
  const int32_t last = min(first + layout.part_tokens, args.vocabulary);
  const bool plans = blockIdx.x == 0 && threadIdx.x == 0;
  const RowWorkspace workspace(workspaces, layout, row);
  TileLogits tile;
  LogitsRow place{};
  Sequence sequence{};
  if (row < rows) {
    // Under way before all that decides what to do with them.
    tile.load(args.logits + int64_t(row) * args.vocabulary, args.vocabulary, first_group(first));
    place = step.rows[row];
    sequence = step.sequences[place.sequence];
  }
  mark_prompts_without_row(args, step, rows, row, int32_t(gridDim.y), first, last);
  if (row >= rows) {
    if (plans) workspace.plan->mode = RowMode::kNone;
    return;
  }
  // These blocks score the same ids next.
  if (is_counted_prompt(sequence)) mark_prompt(args, step.ids, sequence, first, last);
  if (!is_live(sequence, args.slots)) {
    if (plans) workspace.plan->mode = RowMode::kIdle;
    return;
  }

  const Sampling& sampling = step.sampling[row];
  const Slot slot = started(args.slots[sequence.slot], sampling);
  const bool forced = is_forced(slot, sampling), random = !forced && sampling.temperature > 0,
             few = random && FewFinder::suits(sampling.top_k, args.vocabulary, layout.groups),
             spread = random && !few;
  if (plans) {
    *workspace.plan = {spread ? RowMode::kSpread : RowMode::kBlock,
                       forced,
                       uniform_of_row(place, sequence, sampling),
                       slot,
                       sequence,
                       sampling,
                       step.lists};
  }
  if (spread) clear_histogram(workspace.histogram);
  const SurveyTask task = {!forced, spread, few || sampling.logprobs > 0, sampling.logprobs >= 0,
                           sampling.temperature};
  if (task.best || task.raw) {
    survey(scores_of_row(args, row, sequence, sampling), TokenOrder(args.vocabulary), task, first, last,
           workspace, int(blockIdx.x), tile, *reinterpret_cast<SurveyShared*>(shared));
  }
}

struct ChooseShared {
  Result result;
  bool is_last;
};

/// A word for each thread that has one: the result as a whole.
__device__ void write_result(const Result& result, Result* to) {
  constexpr int kWords = sizeof(Result) / 4;
  if (threadIdx.x < kWords)
    reinterpret_cast<uint32_t*>(to)[threadIdx.x] = reinterpret_cast<const uint32_t*>(&result)[threadIdx.x];
}

__global__ void __launch_bounds__(kSampleThreads, 2)
    choose_kernel(SampleArgs args, SampleLayout layout, void* workspaces, uint32_t* counters) {
  __shared__ __align__(16) uint8_t shared_bytes[sizeof(ChooseShared)];
  ChooseShared& shared = *reinterpret_cast<ChooseShared*>(shared_bytes);
  grid_dependency_launch();
  grid_dependency_wait();
  const int32_t row = int32_t(blockIdx.y);
  const RowWorkspace workspace(workspaces, layout, row);
  const RowPlan& plan = *workspace.plan;
  const RowMode mode = plan.mode;
  if (mode == RowMode::kNone || (mode != RowMode::kSpread && blockIdx.x > 0)) return;
  TileLogits tile;
  int32_t first = int32_t(blockIdx.x) * layout.part_tokens;
  const int32_t last = min(first + layout.part_tokens, args.vocabulary);
  if (mode == RowMode::kSpread)
    tile.load(args.logits + int64_t(row) * args.vocabulary, args.vocabulary, first_group(first));
  Result& result = shared.result;
  for (int word = int(threadIdx.x); word < int(sizeof(Result) / 4); word += kSampleThreads)
    reinterpret_cast<uint32_t*>(&result)[word] = 0;
  __syncthreads();
  if (mode == RowMode::kIdle) {
    write_result(result, &args.results[row]);
    return;
  }

  const Sampling& sampling = plan.sampling;
  const Sequence& sequence = plan.sequence;
  const bool forced = plan.forced != 0;
  const SurveyTask task = {!forced, mode == RowMode::kSpread, false, sampling.logprobs >= 0,
                           sampling.temperature};
  const Scores scores = scores_of_row(args, row, sequence, sampling);
  const TokenOrder order(args.vocabulary);
  // Every warp does: that takes no longer than one doing it for all.
  const RowSummary summary = task.best ? combine_parts(workspace, layout.parts, order, task) : RowSummary{};
  const bool random = !forced && sampling.temperature > 0 &&
                      order.score(summary.best) > -std::numeric_limits<float>::infinity();
  const RelativeWeight weight = {order, order.score(summary.best), sampling.temperature};
  int32_t token;
  if (random && mode == RowMode::kSpread) {
    const BinRange range(order, summary.best, sampling, plan.uniform, args.vocabulary, summary.sum);
    for (;;) {
      sort_tile(scores, range, sampling, first, tile, workspace);
      first += kTile;
      if (first >= last) break;
      tile.load(scores.logits, scores.vocabulary, first_group(first));
    }
    if (!arrive_last(&counters[row], int32_t(gridDim.x), shared.is_last)) return;
    const SpreadFinder finder(scores, order, weight, workspace, layout.tiles);
    token = order.id(draw(finder, sampling, args.vocabulary, plan.uniform, summary.sum));
  } else if (blockIdx.x > 0) {
    return;
  } else if (random) {
    const TokenItems tokens = {scores, order, workspace.group_best, layout.groups};
    const FewFinder finder(tokens, weight, sampling, summary.best);
    token = order.id(draw(finder, sampling, args.vocabulary, plan.uniform, 0));
  } else {
    token = forced ? plan.lists[sampling.forced_first + plan.slot.forced] : order.id(summary.best);
  }

  if (sampling.logprobs >= 0) {
    const WeightSum sum = combine_raw(workspace, layout.parts);
    const LogNormaliser normaliser = {sum.largest, log(sum.sum)};
    if (threadIdx.x == 0) result.logprob = normaliser.logprob(scores.raw(token));
    Scores raw = scores;
    raw.seen = nullptr;
    const TokenItems tokens = {
        raw, order, scores.seen != nullptr ? workspace.raw_group_best : workspace.group_best, layout.groups};
    top_logprobs(tokens, normaliser, sampling.logprobs, result);
  }
  if (threadIdx.x == 0) {
    Slot slot = plan.slot;
    result.token = token;
    result.flags = kSampled;
    if ((sequence.flags & kCount) != 0) {
      const int64_t index = int64_t(sequence.slot) * args.vocabulary + token;
      args.seen[index] = 1;
      ++args.counts[index];
    }
    advance(slot, sampling, plan.lists, token, forced, result);
    args.slots[sequence.slot] = slot;
  }
  __syncthreads();
  write_result(result, &args.results[row]);
}

}  // namespace

cudaError_t sample_cuda(const SampleArgs& args, int32_t capacity, void* workspace, void* counters,
                        const CudaTarget& target) {
  if (args.vocabulary < 1 || args.vocabulary > kMostVocabulary || capacity < 1 || capacity > 65535)
    return cudaErrorInvalidValue;
  const SampleLayout layout = sample_layout(args.vocabulary, capacity, target.multiprocessors);
  const LaunchShape shape = {dim3(unsigned(layout.parts), unsigned(capacity)), dim3(kSampleThreads)};
  const cudaError_t error = launch(target, shape, survey_kernel, args, layout, workspace);
  if (error != cudaSuccess) return error;
  return launch(target, shape, choose_kernel, args, layout, workspace, static_cast<uint32_t*>(counters));
}

CudaScratch sample_cuda_scratch(const SampleArgs& args, int32_t capacity, const CudaTarget& target) {
  if (args.vocabulary < 1 || capacity < 1) return {};
  const SampleLayout layout = sample_layout(args.vocabulary, capacity, target.multiprocessors);
  return {size_t(capacity) * layout.row_bytes, size_t(capacity) * sizeof(uint32_t)};
}

}  // namespace nibblet
