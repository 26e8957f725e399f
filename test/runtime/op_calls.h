#pragma once

#include "kernels/moe/moe.h"
#include "native/runtime/ops.h"
#include "test/runtime/fixture.h"

namespace nibblet::test {

using enum DType;

inline std::shared_ptr<Weight> make_weight(int32_t out, int32_t in, int32_t matrices = 1) {
  return std::make_shared<Weight>(Device::open("cpu"), Format::f32, Layout::rows, matrices, out, in);
}

/// A call that is right in every respect.
inline OpCall good_call(const std::string& name, Stream& stream) {
  OpCall call{&op_named(name), &stream, {}, {}};
  auto t = [](DType dtype, std::vector<int64_t> shape) { return make_tensor(dtype, std::move(shape)); };
  if (name == "embed") {
    call.operands = {t(i32, {3, 8}), t(bf16, {11, 4}), t(f32, {5, 4})};
  } else if (name == "linear") {
    call.operands = {t(f32, {5, 4}), make_weight(6, 4), t(f32, {4}), t(f32, {6}), t(f32, {5, 6})};
    call.attributes = {1e-5, 1, 0, 0, 0, 0};
  } else if (name == "mamba") {
    // 4 heads of 2, one group, state 3: 8 inner, 14 channels.
    call.operands = {t(i32, {3, 8}),     t(f32, {5, 26}),      t(f32, {14, 4}), t(f32, {14}),
                     t(f32, {4}),        t(f32, {4}),          t(f32, {4}),     t(f32, {8}),
                     t(f32, {3, 14, 3}), t(f32, {3, 4, 2, 3}), t(f32, {5, 8})};
    call.attributes = {1, 1e-5, 1};
  } else if (name == "attention") {
    // 4 heads over 2 key-value heads of 4.
    call.operands = {t(i32, {3, 8}), t(f32, {5, 32}), t(f32, {6, 2, 2, kPageTokens, 4}), t(f32, {5, 16})};
    call.attributes = {4, 1, 1, 1};
  } else if (name == "moe") {
    call.operands = {t(f32, {5, 4}),
                     t(f32, {4}),
                     t(f32, {6, 4}),
                     t(f32, {6}),
                     make_weight(3, 4, 6),
                     make_weight(4, 3, 6),
                     make_weight(5, 4),
                     make_weight(4, 5),
                     t(f32, {6, 3}),
                     t(f32, {6, 4}),
                     t(f32, {5}),
                     t(f32, {4}),
                     t(u32, {2 * (kMoeExperts + 6)})};
    call.attributes = {1e-5, 1, 2, 2, 1, 1, 2.5};
  } else if (name == "sample") {
    call.operands = {t(i32, {3, 8}), t(f32, {2, 11}), t(u8, {3, 11}), t(u32, {3, 11}),
                     t(u8, {2, sizeof(Result)})};
  } else if (name == "quantize") {
    call.operands = {t(f32, {3, 32}), t(u8, {3, 16}), t(e4m3, {3, 2}), t(f32, {1})};
  }
  return call;
}

}  // namespace nibblet::test
