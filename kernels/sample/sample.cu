#include <algorithm>

#include "kernels/cuda/device.h"
#include "kernels/sample/choose.cuh"
#include "kernels/sample/cuda.h"
#include "kernels/sample/layout.cuh"
#include "kernels/sample/logprobs.cuh"
#include "kernels/sample/mark.cuh"
#include "kernels/sample/row.h"
#include "kernels/sample/survey.cuh"

namespace nibblet {
namespace {

struct SampleShared {
  SurveyShared survey;
  RowSummary row;
  Result result;
  bool is_last;
};

/// A word for each thread that has one: the result as a whole.
__device__ void write_result(const Result& result, Result* to) {
  constexpr int kWords = sizeof(Result) / 4;
  if (threadIdx.x < kWords)
    reinterpret_cast<uint32_t*>(to)[threadIdx.x] = reinterpret_cast<const uint32_t*>(&result)[threadIdx.x];
}

/// Counts the calling block as done. @return whether it is the last of `blocks`; then it can read what the others wrote
__device__ bool arrive_last(uint32_t* counter, unsigned blocks, SampleShared& shared) {
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    shared.is_last = atomicAdd(counter, 1u) == blocks - 1;
    __threadfence();
    if (shared.is_last) *counter = 0;
  }
  __syncthreads();
  return shared.is_last;
}

/// Every block summarises its part of a row (blockIdx.y); the last one of the row picks the token.
__global__ void __launch_bounds__(kSampleThreads, 2)
    sample_kernel(SampleArgs args, SampleLayout layout, void* workspaces, uint32_t* counters) {
  __shared__ __align__(16) uint8_t shared_bytes[sizeof(SampleShared)];
  SampleShared& shared = *reinterpret_cast<SampleShared*>(shared_bytes);
  grid_dependency_launch();
  grid_dependency_wait();
  const Step step = *args.step;
  const int32_t row = int32_t(blockIdx.y), rows = step.sampling != nullptr ? step.row_count : 0;
  const int32_t first = int32_t(blockIdx.x) * layout.part_tokens;
  const int32_t last = min(first + layout.part_tokens, args.vocabulary);
  Turn turn;
  LogitsRow place{};
  Sequence sequence{};
  if (row < rows) {
    // Under way before all that decides what to do with them.
    turn.load(args.logits + int64_t(row) * args.vocabulary, args.vocabulary, first_group(first));
    place = step.rows[row];
    sequence = step.sequences[place.sequence];
  }
  mark_prompts_without_row(args, step, rows, row, int32_t(gridDim.y), first, last);
  if (row >= rows) return;
  // These blocks score the same ids next.
  if (is_counted_prompt(sequence)) mark_prompt(args, step.ids, sequence, first, last);

  const Sampling& sampling = step.sampling[row];
  Result& result = shared.result;
  for (int word = int(threadIdx.x); word < int(sizeof(Result) / 4); word += kSampleThreads)
    reinterpret_cast<uint32_t*>(&result)[word] = 0;
  __syncthreads();
  if (!is_live(sequence, args.slots)) {
    if (blockIdx.x == 0) write_result(result, &args.results[row]);
    return;
  }
  const bool forced = is_forced(started(args.slots[sequence.slot], sampling), sampling),
             random = !forced && sampling.temperature > 0;
  const SurveyTask task = {!forced, random, sampling.logprobs >= 0, sampling.temperature};
  const Scores scores = scores_of_row(args, row, sequence, sampling);
  const TokenOrder order(args.vocabulary);
  const RowWorkspace workspace(workspaces, layout, row);
  if (task.best || task.raw)
    survey(scores, order, task, first, last, workspace, int(blockIdx.x), turn, shared.survey);
  if (!arrive_last(&counters[row], gridDim.x, shared)) return;

  if (threadIdx.x < 32) {
    const RowSummary summary =
        task.best || task.raw ? combine_parts(workspace, layout.parts, order, task) : RowSummary{};
    if (threadIdx.x == 0) shared.row = summary;
  }
  __syncthreads();
  const RowSummary summary = shared.row;
  Slot slot = started(args.slots[sequence.slot], sampling);
  int32_t token;
  if (forced) {
    token = step.lists[sampling.forced_first + slot.forced];
  } else if (random && order.score(summary.best) > -std::numeric_limits<float>::infinity()) {
    const TokenItems tokens = {scores, order, workspace.group_best, layout.groups};
    token =
        choose_token(tokens, sampling, uniform_of_row(place, sequence, sampling), summary.best, summary.sum);
  } else {
    token = order.id(summary.best);
  }

  if (sampling.logprobs >= 0) {
    const LogNormaliser normaliser = {summary.raw.largest, log(summary.raw.sum)};
    if (threadIdx.x == 0) result.logprob = normaliser.logprob(scores.raw(token));
    Scores raw = scores;
    raw.seen = nullptr;
    const TokenItems tokens = {
        raw, order, scores.seen != nullptr ? workspace.raw_group_best : workspace.group_best, layout.groups};
    top_logprobs(tokens, normaliser, sampling.logprobs, result);
  }
  if (threadIdx.x == 0) {
    result.token = token;
    result.flags = kSampled;
    if ((sequence.flags & kCount) != 0) {
      const int64_t index = int64_t(sequence.slot) * args.vocabulary + token;
      args.seen[index] = 1;
      ++args.counts[index];
    }
    advance(slot, sampling, step.lists, token, forced, result);
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
  return launch(target, {dim3(unsigned(layout.parts), unsigned(capacity)), dim3(kSampleThreads)},
                sample_kernel, args, layout, workspace, static_cast<uint32_t*>(counters));
}

CudaScratch sample_cuda_scratch(const SampleArgs& args, int32_t capacity, const CudaTarget& target) {
  if (args.vocabulary < 1 || capacity < 1) return {};
  const SampleLayout layout = sample_layout(args.vocabulary, capacity, target.multiprocessors);
  return {size_t(capacity) * layout.row_bytes, size_t(capacity) * sizeof(uint32_t)};
}

}  // namespace nibblet
