#include "kernels/linear/cuda.h"
#include "test/cuda/linear_call.h"
#include "test/kernels/compact_rows.h"

namespace nibblet::test {

TEST(cuda_linear_compact_exceptions) {
  const DeviceLinearWeight weight(Format::compact_bf16, 85, 300, awkward_rows(85, 300));
  for (const int32_t tokens : {1, 2, 8, 13, 40, 100}) {
    for (const bool bf16 : {false, true}) {
      LinearCase c = {Format::compact_bf16, 85, 300, tokens, tokens};
      c.norm = !bf16;
      c.selected = tokens == 13;
      if (bf16) c.x_type = DType::bf16;
      DeviceLinear call(c, weight);
      const Elements y = call.run();
      CHECK(call.run() == y);
      call.check(y);
      LinearPlan plan = call.plan();
      if (tokens == 1) continue;
      plan.tokens.cuts = 2;
      call.check(call.run(plan));
    }
  }
  // Rows that are x̂ already, and what prepares them, read the same.
  const DeviceLinearWeight whole(Format::compact_bf16, 85, 320, awkward_rows(85, 320));
  LinearCase c = {Format::compact_bf16, 85, 320, 11, 11};
  c.x_type = DType::bf16;
  DeviceLinear call(c, whole);
  LinearPlan plan = call.plan();
  CHECK(plan.tokens.direct);
  const Elements y = call.run(plan);
  call.check(y);
  plan.tokens.direct = false;
  CHECK(call.run(plan) == y);
}

TEST(cuda_linear_compact_normal) {
  // As trained weights are; and the same products as from plain bf16, up to the order of additions.
  RandomWeight rows(Format::bf16, 333, 2688, 1);
  make_normal(rows, 3);
  const DeviceLinearWeight compact(Format::compact_bf16, 333, 2688, rows);
  const DeviceLinearWeight plain(Format::bf16, 333, 2688, rows);
  CHECK(compact.matrix->size() < plain.matrix->size() * 77 / 100);
  for (const int32_t tokens : {1, 4, 33}) {
    LinearCase c = {Format::compact_bf16, 333, 2688, tokens, tokens};
    c.norm = true;
    DeviceLinear(c, compact).check(DeviceLinear(c, compact).run(), 7);
    c.format = Format::bf16;
    DeviceLinear(c, plain).check(DeviceLinear(c, plain).run(), 7);
  }
}

TEST(cuda_linear_compact_every_exponent) {
  // Inputs 0 ... 1 ... 0: an output is one element, exactly, wherever its row's window lies, and infinite or NaN if it is.
  constexpr int32_t kOut = 272, kIn = 40, kAt = 29;
  RandomWeight source(Format::bf16, kOut, kIn, 3);
  uint16_t* elements = reinterpret_cast<uint16_t*>(source.elements.data());
  for (int32_t n = 0; n < kOut; n++) {
    for (int32_t k = 0; k < kIn; k++) elements[n * kIn + k] = 0;
    elements[n * kIn + kAt] = uint16_t((n % 2) << 15 | (n % 256) << 7 | (n < 256 ? 0x35 : 0));
  }
  const DeviceLinearWeight weight(Format::compact_bf16, kOut, kIn, source);
  for (const int32_t count : {1, 2}) {
    std::vector<float> x_host(size_t(kIn * count));
    for (int32_t m = 0; m < count; m++) x_host[size_t(m * kIn + kAt)] = 1;
    const DeviceArray<float> x(x_host), y(size_t(count * kOut)), ones(std::vector<float>(size_t(kOut), 1.0f));
    LinearArgs args{};
    args.x = x.data();
    args.x_stride = kIn;
    args.count = count;
    args.weight = weight.view;
    args.weight.row_scales = ones.data();
    args.y = y.data();
    args.y_stride = kOut;
    Batch batch;
    batch.add(0, 0, count);
    const DeviceStep step(batch.step());
    const DeviceArray<uint8_t> workspace(linear_cuda_scratch(args, cuda_target()).workspace);
    check_cuda(linear_cuda(args, step.data(), workspace.data(), nullptr, cuda_target()), "linear_cuda");
    const std::vector<float> values = y.read();
    for (size_t i = 0; i < values.size(); i++) {
      const double wanted = source.value(int32_t(i % kOut), kAt);
      if (std::isnan(wanted)) {
        CHECK(std::isnan(values[i]));
      } else {
        CHECK_EQ(double(values[i]), wanted);
      }
    }
  }
}

}  // namespace nibblet::test
