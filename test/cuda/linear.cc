#include "kernels/linear/cuda.h"
#include "test/cuda/linear_call.h"

namespace nibblet::test {
namespace {

/// Runs it twice: right, and the same bits.
void check_case(const LinearCase& c, int32_t row_step = 1) {
  const DeviceLinearWeight weight(c.format, c.out, c.in, c.distinct);
  DeviceLinear call(c, weight);
  const Elements y = call.run();
  CHECK(call.run() == y);
  call.check(y, row_step);
}

void check_awkward_shapes(Format format) {
  for (const int32_t tokens : {1, 2, 7, 20, 64, 130}) {
    for (const int32_t out : {1, 15, 16, 17, 40}) check_case({format, out, 48, tokens, tokens});
    for (const int32_t in : {16, 128, 272}) check_case({format, 33, in, tokens, tokens});
    if (format == Format::nvfp4) continue;
    for (const int32_t in : {1, 17, 31, 100}) check_case({format, 21, in, tokens, tokens});
  }
}

void check_epilogues(Format format) {
  for (const int32_t tokens : {1, 5}) {
    for (int flags = 0; flags < 16; flags++) {
      LinearCase c = {format, 35, 64, tokens, tokens};
      c.bias = flags & 1;
      c.relu2 = flags & 2;
      c.norm = flags & 4;
      c.y_type = flags & 8 ? DType::bf16 : DType::f32;
      c.add = (flags & 8) == 0 && (flags & 1) != 0;
      check_case(c);
    }
  }
}

}  // namespace

TEST(cuda_linear_awkward_shapes_f32) { check_awkward_shapes(Format::f32); }
TEST(cuda_linear_awkward_shapes_bf16) { check_awkward_shapes(Format::bf16); }
TEST(cuda_linear_awkward_shapes_e4m3) { check_awkward_shapes(Format::e4m3); }
TEST(cuda_linear_awkward_shapes_nvfp4) { check_awkward_shapes(Format::nvfp4); }
TEST(cuda_linear_awkward_shapes_compact) { check_awkward_shapes(Format::compact_bf16); }

TEST(cuda_linear_model_inputs) {
  for (const Format format : kLinearFormats) {
    for (const int32_t tokens : {1, 9, 20}) {
      LinearCase c = {format, 37, 2688, tokens, tokens};
      c.norm = true;
      check_case(c);
      c.in = 4096;
      c.norm = false;
      c.x_type = DType::bf16;
      check_case(c);
    }
  }
}

TEST(cuda_linear_many_tiles) {
  // Blocks with several tiles, warps with the end of one and the start of the next.
  for (const Format format : {Format::nvfp4, Format::bf16, Format::e4m3, Format::compact_bf16}) {
    for (const int32_t tokens : {1, 3, 40}) {
      for (const int32_t in : {16, 352, 1024}) check_case({format, 700, in, tokens, tokens}, 3);
    }
  }
}

TEST(cuda_linear_every_plan) {
  // Ways to cut the work that other machines and shapes get; all of them right.
  for (const Format format : {Format::nvfp4, Format::bf16, Format::e4m3, Format::compact_bf16}) {
    LinearCase c = {format, 140, 1300 / 16 * 16, 1, 1};
    c.norm = true;
    const DeviceLinearWeight weight(c.format, c.out, c.in, c.distinct);
    DeviceLinear one(c, weight);
    for (const int blocks : {1, 2, 5, 9}) {
      for (const int warps : {1, 3, 4, 8}) {
        if (warps > c.out / 16 / blocks * c.in / 128) continue;
        for (const int stages : {3, 4, 5, 6, 8}) {
          if ((stages == 5 || stages == 8) && format != Format::compact_bf16) continue;
          LinearPlan plan = one.plan();
          plan.one = {blocks, warps, stages};
          one.check(one.run(plan), 7);
        }
      }
    }
    c.capacity = c.tokens = 21;
    DeviceLinear many(c, weight);
    for (const int splits : {1, 2, 4, 8}) {
      for (const int row_tiles : {2, 3, 4, 5}) {
        LinearPlan plan = many.plan();
        plan.tokens.cuts = 1;
        plan.tokens.splits = splits;
        plan.tokens.row_tiles = row_tiles;
        many.check(many.run(plan), 5);
      }
    }
    c.capacity = c.tokens = 11;
    DeviceLinear few(c, weight);
    for (const int splits : {1, 2, 4, 8}) {
      for (const int row_tiles : {1, 2}) {
        LinearPlan plan = few.plan();
        plan.tokens.splits = splits;
        plan.tokens.row_tiles = row_tiles;
        few.check(few.run(plan), 5);
      }
    }
    // Rows that need no preparation, in or beside their own memory.
    for (const auto& [capacity, tokens] : {std::pair(2, 2), std::pair(16, 13), std::pair(70, 67)}) {
      LinearCase bf16 = {format, 70, 384, capacity, tokens};
      bf16.x_type = DType::bf16;
      const DeviceLinearWeight other(bf16.format, bf16.out, bf16.in, bf16.distinct);
      DeviceLinear direct(bf16, other);
      LinearPlan plan = direct.plan();
      CHECK_EQ(plan.tokens.direct, capacity <= 16 && format != Format::nvfp4);
      plan.tokens.direct = true;
      const Elements y = direct.run(plan);
      direct.check(y, 5);
      plan.tokens.direct = false;
      CHECK(direct.run(plan) == y);
    }
  }
}

TEST(cuda_linear_norm_of_long_rows) {
  // Longer than what threads keep in registers between the two passes.
  LinearCase c = {Format::nvfp4, 20, 9200, 1, 1};
  c.norm = true;
  check_case(c);
  c.format = Format::bf16;
  c.capacity = c.tokens = 2;
  check_case(c);
  c.x_type = DType::bf16;
  check_case(c);
}

TEST(cuda_linear_epilogues_f32) { check_epilogues(Format::f32); }
TEST(cuda_linear_epilogues_bf16) { check_epilogues(Format::bf16); }
TEST(cuda_linear_epilogues_e4m3) { check_epilogues(Format::e4m3); }
TEST(cuda_linear_epilogues_nvfp4) { check_epilogues(Format::nvfp4); }
TEST(cuda_linear_epilogues_compact) { check_epilogues(Format::compact_bf16); }

TEST(cuda_linear_counts_of_the_step) {
  for (const Format format : kLinearFormats) {
    for (const bool selected : {false, true}) {
      for (const auto& [capacity, tokens] :
           {std::pair(1, 0), std::pair(1, 1), std::pair(8, 0), std::pair(8, 3), std::pair(64, 17),
            std::pair(150, 0), std::pair(150, 65)}) {
        LinearCase c = {format, 33, 96, capacity, tokens};
        c.selected = selected;
        c.add = capacity != 8;
        check_case(c);
      }
    }
  }
}

TEST(cuda_linear_every_scale) {
  // Inputs 1, 0, 0 ...: an output is one element times its scale, exactly, whatever the scale and the code.
  for (const int32_t count : {1, 2}) {
    RandomWeight source(Format::nvfp4, 127 * 16, 16, 3);
    for (int32_t n = 0; n < source.out; n++) {
      source.block_scales[size_t(n)] = uint8_t(n / 16);
      source.elements[size_t(n) * 8] = uint8_t(n % 16 | 0x70);
    }
    std::fill(source.row_scales.begin(), source.row_scales.end(), 1.0f);
    const PackedWeight packed(source, Layout::fragments);
    const DeviceArray<uint8_t> matrix(packed.view.data, packed.bytes.size());
    const DeviceArray<float> row_scales(source.row_scales);
    std::vector<float> x_host(size_t(16 * count));
    for (int32_t m = 0; m < count; m++) x_host[size_t(m) * 16] = 1;
    const DeviceArray<float> x(x_host), y(size_t(count) * size_t(source.out));
    LinearArgs args{};
    args.x = x.data();
    args.x_stride = 16;
    args.count = count;
    args.weight = packed.view;
    args.weight.data = matrix.data();
    args.weight.row_scales = row_scales.data();
    args.y = y.data();
    args.y_stride = source.out;
    Batch batch;
    batch.add(0, 0, count);
    const DeviceStep step(batch.step());
    const DeviceArray<uint8_t> workspace(linear_cuda_scratch(args, cuda_target()).workspace);
    check_cuda(linear_cuda(args, step.data(), workspace.data(), nullptr, cuda_target()), "linear_cuda");
    const std::vector<float> values = y.read();
    for (int32_t m = 0; m < count; m++) {
      for (int32_t n = 0; n < source.out; n++) {
        CHECK_EQ(double(values[size_t(m) * size_t(source.out) + size_t(n)]),
                 e2m1_value(n % 16) * e4m3_value(uint8_t(n / 16)));
      }
    }
  }
}

TEST(cuda_linear_keeps_nan) {
  for (const Format format : kLinearFormats) {
    for (const int32_t count : {1, 2}) {
      const DeviceLinearWeight weight(format, 16, 32, 16);
      std::vector<float> x_host(size_t(32 * count), 1.0f);
      x_host[3] = NAN;
      const DeviceArray<float> x(x_host), y(size_t(16 * count));
      LinearArgs args{};
      args.x = x.data();
      args.x_stride = 32;
      args.count = count;
      args.weight = weight.view;
      args.activation = Activation::relu2;
      args.y = y.data();
      args.y_stride = 16;
      Batch batch;
      batch.add(0, 0, count);
      const DeviceStep step(batch.step());
      const DeviceArray<uint8_t> workspace(linear_cuda_scratch(args, cuda_target()).workspace);
      check_cuda(linear_cuda(args, step.data(), workspace.data(), nullptr, cuda_target()), "linear_cuda");
      const std::vector<float> values = y.read();
      for (size_t i = 0; i < values.size(); i++) CHECK_EQ(std::isnan(values[i]), i < 16);
    }
  }
}

TEST(cuda_linear_refuses) {
  const DeviceLinearWeight weight(Format::bf16, 16, 32, 16);
  LinearArgs args{};
  args.count = 1;
  args.weight = weight.view;
  args.weight.layout = Layout::panels;
  CHECK(linear_cuda(args, nullptr, nullptr, nullptr, cuda_target()) == cudaErrorInvalidValue);
}

}  // namespace nibblet::test
