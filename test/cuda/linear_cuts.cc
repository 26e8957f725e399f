#include "test/cuda/linear_call.h"

// Blocks that share the inputs of their row tiles.
namespace nibblet::test {
namespace {

constexpr Format kCutFormats[] = {Format::nvfp4, Format::bf16, Format::e4m3, Format::compact_bf16};

LinearPlan with_cuts(LinearPlan plan, int cuts, int row_tiles, int splits) {
  plan.tokens.cuts = cuts;
  plan.tokens.row_tiles = row_tiles;
  plan.tokens.splits = splits;
  return plan;
}

/// Runs it twice: right, and the same bits.
void check_plan(DeviceLinear& call, const LinearPlan& plan, int32_t row_step = 1) {
  const Elements y = call.run(plan);
  CHECK(call.run(plan) == y);
  call.check(y, row_step);
}

/// 1,040 inputs are no whole shares of units; 48 are fewer units than shares.
void check_awkward_shapes(Format format) {
  for (const int32_t out : {1, 17, 100}) {
    for (const int32_t in : {48, 1040}) {
      const DeviceLinearWeight weight(format, out, in, out);
      for (const auto& [capacity, tokens] :
           {std::pair(2, 2), std::pair(12, 9), std::pair(32, 32), std::pair(64, 50), std::pair(70, 67)}) {
        DeviceLinear call({format, out, in, capacity, tokens}, weight);
        for (const int cuts : {2, 3, 4}) {
          check_plan(call, with_cuts(call.plan(), cuts, capacity > 16 ? cuts + 1 : 2, cuts == 3 ? 2 : 8), 5);
        }
      }
    }
  }
}

void check_epilogues(Format format) {
  const DeviceLinearWeight weight(format, 35, 320, 35);
  for (int flags = 0; flags < 32; flags++) {
    LinearCase c = {format, 35, 320, 21, 19};
    c.bias = flags & 1;
    c.relu2 = flags & 2;
    c.norm = flags & 4;
    c.y_type = flags & 8 ? DType::bf16 : DType::f32;
    c.selected = flags & 16;
    c.add = (flags & 8) == 0 && (flags & 1) != 0;
    DeviceLinear call(c, weight);
    check_plan(call, with_cuts(call.plan(), 3, 2, 4));
  }
}

/// Up to what a bucket has: what a row gives does not depend on how many there are.
void check_counts(Format format) {
  const DeviceLinearWeight weight(format, 40, 544, 40);
  for (const int32_t capacity : {32, 64}) {
    LinearCase c = {format, 40, 544, capacity, capacity};
    c.add = true;
    DeviceLinear call(c, weight);
    const LinearPlan plan = with_cuts(call.plan(), 2, 3, 8);
    const Elements whole = call.run(plan);
    call.check(whole, 3);
    for (int32_t tokens = 0; tokens < capacity; tokens++) {
      call.set_tokens(tokens);
      const Elements y = call.run(plan);
      int different = 0;
      for (size_t i = 0; i < size_t(tokens) * size_t(call.args().y_stride); i++)
        different += y[i] != whole[i];
      CHECK_EQ(different, 0);
      call.check(y, 40);
    }
  }
}

}  // namespace

TEST(cuda_linear_cuts_awkward_shapes_bf16) { check_awkward_shapes(Format::bf16); }
TEST(cuda_linear_cuts_awkward_shapes_e4m3) { check_awkward_shapes(Format::e4m3); }
TEST(cuda_linear_cuts_awkward_shapes_nvfp4) { check_awkward_shapes(Format::nvfp4); }
TEST(cuda_linear_cuts_awkward_shapes_compact) { check_awkward_shapes(Format::compact_bf16); }

TEST(cuda_linear_cuts_epilogues_bf16) { check_epilogues(Format::bf16); }
TEST(cuda_linear_cuts_epilogues_e4m3) { check_epilogues(Format::e4m3); }
TEST(cuda_linear_cuts_epilogues_nvfp4) { check_epilogues(Format::nvfp4); }
TEST(cuda_linear_cuts_epilogues_compact) { check_epilogues(Format::compact_bf16); }

TEST(cuda_linear_cuts_counts_bf16) { check_counts(Format::bf16); }
TEST(cuda_linear_cuts_counts_nvfp4) { check_counts(Format::nvfp4); }

TEST(cuda_linear_cuts_in_a_graph) {
  // Two linears in the same workspace, as ops of a stream have it, with counters of their own; steps of several sizes.
  for (const Format format : kCutFormats) {
    const DeviceLinearWeight weight(format, 70, 768, 70);
    LinearCase c = {format, 70, 768, 40, 40};
    c.x_type = DType::bf16;
    DeviceLinear first(c, weight);
    c.add = true;
    DeviceLinear second(c, weight);
    const LinearPlan plan = with_cuts(first.plan(), 3, 2, 8);
    const Elements first_y = first.run(plan), second_y = second.run(plan);
    const LinearScratch scratch(first.args(), plan), others(first.args(), plan);

    const cudaStream_t stream = cuda_target().stream;
    cudaGraph_t graph;
    cudaGraphExec_t executable;
    check_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "begin capture");
    first.enqueue(plan, scratch);
    check_cuda(linear_cuda(second.args(), second.step(), scratch.workspace.data(), others.counters.data(),
                           plan, cuda_target()),
               "linear_cuda");
    check_cuda(cudaStreamEndCapture(stream, &graph), "end capture");
    check_cuda(cudaGraphInstantiate(&executable, graph, 0), "instantiate");
    for (const int32_t tokens : {0, 40, 40, 7, 0, 40}) {
      for (DeviceLinear* call : {&first, &second}) {
        call->set_tokens(tokens);
        call->reset();
      }
      check_cuda(cudaGraphLaunch(executable, stream), "launch");
      const Elements y = first.read(), sum = second.read();
      CHECK(tokens < 40 || (y == first_y && sum == second_y));
      first.check(y, 13);
      second.check(sum, 13);
      CHECK(scratch.left_as_it_must_be());
      CHECK(others.left_as_it_must_be());
    }
    cudaGraphExecDestroy(executable);
    cudaGraphDestroy(graph);
  }
}

TEST(cuda_linear_cuts_of_plans) {
  // An H100's: where row tiles are fewer than its multiprocessors want, and nowhere else.
  CudaTarget target = cuda_target();
  target.multiprocessors = 132;
  target.shared_bytes = 227 << 10;
  for (const LinearShape& shape : kNanoLinears) {
    for (const int32_t count : {1, 8, 16, 32, 64, 512}) {
      LinearArgs args{};
      args.count = count;
      args.weight.format = shape.format;
      args.weight.layout = Layout::fragments;
      args.weight.out = shape.out;
      args.weight.in = shape.in;
      const TokensPlan plan = plan_linear_cuda(args, target).tokens;
      int cuts = 1;
      if (shape.out == 2688 && (count == 32 || count == 64)) cuts = shape.format == Format::nvfp4 ? 2 : 3;
      CHECK_EQ(plan.cuts, cuts);
      if (cuts > 1) CHECK_EQ(plan.row_tiles, shape.format == Format::nvfp4 ? 3 : 4);
      if (shape.out == 131072 && count == 64) CHECK_EQ(plan.splits, 2);
      const CudaScratch scratch = linear_cuda_scratch(args, target);
      if (cuts == 1) {
        CHECK_EQ(scratch.counters, size_t{0});
      } else {
        const int32_t blocks = ((shape.out + 15) / 16 + plan.row_tiles - 1) / plan.row_tiles;
        CHECK(blocks * cuts <= target.multiprocessors);
        CHECK_EQ(scratch.counters, size_t(blocks) * 4);
      }
    }
  }
}

}  // namespace nibblet::test
