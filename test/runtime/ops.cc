#include "test/runtime/op_calls.h"

using namespace nibblet;
using namespace nibblet::test;

namespace {

const char* kOps[] = {"embed", "linear", "mamba", "attention", "moe", "sample", "quantize"};

/// Runs `change` on a good call of every op and every operand that `wants` chooses, and checks the error it gives.
template <class Wants, class Change>
void check_operands(Wants wants, Change change, const std::string& text) {
  auto stream = open_stream();
  for (const char* name : kOps) {
    const Op& op = op_named(name);
    for (size_t i = 0; i < op.operands.size(); ++i) {
      OpCall call = good_call(name, *stream);
      if (!wants(op.operands[i])) continue;
      change(call.operands[i], op.operands[i]);
      std::string operand = std::string("`") + op.operands[i].name + "`";
      CHECK_THROWS("INVALID_OPTION", enqueue_op(call), std::string(name) + ": ", operand, text);
    }
  }
  CHECK(!sync(*stream).error);
}

bool is_tensor(const OperandSpec& spec) { return spec.kind == OperandKind::tensor; }
bool is_required(const OperandSpec& spec) { return !spec.optional; }
bool is_any(const OperandSpec&) { return true; }

}  // namespace

TEST(ops_accept_good_calls) {
  auto stream = open_stream();
  CHECK_EQ(op_table().size(), std::size(kOps));
  // Recorded only: there is no step to run them on.
  stream->begin_capture();
  for (const char* name : kOps) {
    CHECK(!error_of([&] { enqueue_op(good_call(name, *stream)); }));
    // And without what is optional.
    OpCall call = good_call(name, *stream);
    for (size_t i = 0; i < call.operands.size(); ++i) {
      if (call.op->operands[i].optional) call.operands[i] = std::monostate{};
    }
    CHECK(!error_of([&] { enqueue_op(call); }));
  }
  stream->close();
}

TEST(ops_reject_wrong_dtypes) {
  check_operands(
      is_tensor,
      [](Operand& operand, const OperandSpec& spec) {
        DType wrong = std::find(spec.dtypes.begin(), spec.dtypes.end(), f16) == spec.dtypes.end() ? f16 : u8;
        operand = make_tensor(wrong, std::get<Tensor>(operand).shape);
      },
      "got f16");
}

TEST(ops_reject_wrong_ranks) {
  check_operands(
      is_tensor, [](Operand& operand, const OperandSpec&) { std::get<Tensor>(operand).shape.push_back(1); },
      "dimensions for");
  check_operands(
      is_tensor, [](Operand& operand, const OperandSpec&) { std::get<Tensor>(operand).shape.clear(); },
      "dimensions for");
}

TEST(ops_reject_shapes_that_cannot_be) {
  for (int64_t extent : {int64_t{0}, int64_t{-1}, int64_t{INT32_MAX} + 1, INT64_MAX, INT64_MIN}) {
    check_operands(
        is_tensor, [=](Operand& operand, const OperandSpec&) { std::get<Tensor>(operand).shape[0] = extent; },
        "impossible shape");
  }
  // Extents whose product wraps around 64 bits, to 0.
  check_operands([](const OperandSpec& spec) { return is_tensor(spec) && spec.rank >= 3; },
                 [](Operand& operand, const OperandSpec&) {
                   for (int64_t& extent : std::get<Tensor>(operand).shape) extent = 1 << 30;
                 },
                 "impossible shape");
}

TEST(ops_reject_tensors_beyond_their_buffer) {
  check_operands(
      is_tensor,
      [](Operand& operand, const OperandSpec&) {
        Tensor& tensor = std::get<Tensor>(operand);
        tensor.offset = tensor.buffer->bytes() - tensor.bytes() + dtype_bytes(tensor.dtype);
      },
      "reaches beyond its buffer");
  check_operands(
      is_tensor,
      [](Operand& operand, const OperandSpec&) { std::get<Tensor>(operand).offset = SIZE_MAX - 3; },
      "reaches beyond");
  check_operands(
      is_tensor, [](Operand& operand, const OperandSpec&) { std::get<Tensor>(operand).shape[0] = 1 << 28; },
      "");
}

TEST(ops_reject_misaligned_tensors) {
  check_operands([](const OperandSpec& spec) { return is_tensor(spec) && dtype_bytes(spec.dtypes[0]) > 1; },
                 [](Operand& operand, const OperandSpec&) {
                   Tensor& tensor = std::get<Tensor>(operand);
                   std::vector<int64_t> larger = tensor.shape;
                   larger[0] += 1;
                   tensor.buffer = make_tensor(tensor.dtype, larger).buffer;
                   tensor.offset = 1;
                 },
                 "not aligned");
}

TEST(ops_reject_missing_and_swapped_operands) {
  check_operands(
      is_required, [](Operand& operand, const OperandSpec&) { operand = std::monostate{}; }, "is missing");
  check_operands(
      is_any,
      [](Operand& operand, const OperandSpec& spec) {
        if (is_tensor(spec)) {
          operand = make_weight(1, 1);
        } else {
          operand = make_tensor(f32, {4, 4});
        }
      },
      "must be a");
  auto stream = open_stream();
  for (const char* name : kOps) {
    OpCall fewer = good_call(name, *stream), more = good_call(name, *stream),
           attributes = good_call(name, *stream);
    fewer.operands.pop_back();
    more.operands.emplace_back();
    attributes.attributes.push_back(0);
    for (OpCall* call : {&fewer, &more, &attributes}) {
      CHECK_THROWS("INVALID_OPTION", enqueue_op(*call), name, "operands and", "attributes");
    }
  }
}

TEST(ops_reject_wrong_shapes) {
  struct Case {
    const char* op;
    const char* operand;
    size_t dimension;
    int64_t extent;
    const char* named;  ///< the operand of the message
  };
  const Case cases[] = {
      {"embed", "slots", 1, 7, "slots"},
      {"embed", "y", 1, 3, "y"},
      {"linear", "x", 1, 3, "x"},
      {"linear", "norm", 0, 3, "norm"},
      {"linear", "bias", 0, 5, "bias"},
      {"linear", "y", 1, 5, "y"},
      {"linear", "y", 0, 4, "y"},
      {"mamba", "projected", 1, 25, "projected"},
      {"mamba", "convWeight", 0, 13, "convWeight"},
      {"mamba", "convWeight", 1, 1, "kernel"},
      {"mamba", "convBias", 0, 13, "convBias"},
      {"mamba", "dtBias", 0, 3, "dtBias"},
      {"mamba", "aLog", 0, 3, "aLog"},
      {"mamba", "d", 0, 3, "d"},
      {"mamba", "norm", 0, 7, "norm"},
      {"mamba", "convState", 0, 2, "convState"},
      {"mamba", "convState", 2, 2, "convState"},
      {"mamba", "ssmState", 3, 2, "projected"},
      {"mamba", "y", 0, 4, "y"},
      {"mamba", "y", 1, 7, "y"},
      {"attention", "qkv", 1, 31, "qkv"},
      {"attention", "cache", 1, 1, "cache"},
      {"attention", "cache", 3, 32, "cache"},
      {"attention", "y", 0, 4, "y"},
      {"attention", "y", 1, 15, "y"},
      {"moe", "x", 1, 3, "x"},
      {"moe", "norm", 0, 3, "norm"},
      {"moe", "bias", 0, 5, "bias"},
      {"moe", "router", 0, 5, "bias"},
      {"moe", "upBias", 1, 2, "upBias"},
      {"moe", "downBias", 0, 5, "downBias"},
      {"moe", "sharedUpBias", 0, 4, "sharedUpBias"},
      {"moe", "sharedDownBias", 0, 3, "sharedDownBias"},
      {"moe", "statistics", 0, 16, "statistics"},
      {"sample", "seen", 0, 2, "seen"},
      {"sample", "counts", 1, 10, "counts"},
      {"sample", "results", 1, 175, "results"},
      {"sample", "results", 0, 1, "results"},
      {"quantize", "w", 1, 31, "columns"},
      {"quantize", "codes", 1, 15, "codes"},
      {"quantize", "blockScales", 1, 1, "blockScales"},
  };
  auto stream = open_stream();
  for (const Case& test : cases) {
    OpCall call = good_call(test.op, *stream);
    for (size_t i = 0; i < call.operands.size(); ++i) {
      if (call.op->operands[i].name != std::string(test.operand)) continue;
      std::get<Tensor>(call.operands[i]).shape[test.dimension] = test.extent;
    }
    CHECK_THROWS("INVALID_OPTION", enqueue_op(call), std::string(test.op) + ": ", test.named);
  }
}

TEST(ops_reject_wrong_weights_and_attributes) {
  auto stream = open_stream();
  OpCall call = good_call("linear", *stream);
  call.operands[1] = make_weight(6, 4, 2);
  CHECK_THROWS("INVALID_OPTION", enqueue_op(call), "linear: `weight` must be a single matrix");
  call.operands[1] = std::make_shared<Weight>(Device::open("cpu"), Format::f32, Layout::panels, 1, 6, 4);
  CHECK_THROWS("INVALID_OPTION", enqueue_op(call), "linear: `exact` needs a weight in rows layout");
  call = good_call("linear", *stream);
  call.attributes[5] = 1;
  CHECK_THROWS("INVALID_OPTION", enqueue_op(call),
               "linear: `quantizeInput` needs a weight with an input scale");
  call = good_call("moe", *stream);
  call.operands[4] = make_weight(3, 4, 5);
  CHECK_THROWS("INVALID_OPTION", enqueue_op(call), "moe: ", "`up`");
  call = good_call("moe", *stream);
  call.operands[7] = std::monostate{};
  CHECK_THROWS("INVALID_OPTION", enqueue_op(call), "moe: ", "`sharedDown`");
  struct Case {
    const char* op;
    size_t attribute;
    double value;
    const char* text;
  };
  const Case cases[] = {
      {"linear", 0, NAN, "epsilon"},  {"mamba", 0, 0, "groups"},       {"mamba", 0, 3, "groups"},
      {"mamba", 0, 1.5, "groups"},    {"mamba", 0, -1, "groups"},      {"attention", 0, 3, "heads"},
      {"attention", 0, 0, "heads"},   {"attention", 0, 1e12, "heads"}, {"attention", 1, 0, "scales"},
      {"attention", 2, -1, "scales"}, {"attention", 1, NAN, "kScale"}, {"moe", 2, 0, "topK"},
      {"moe", 2, 4, "topK"},          {"moe", 3, 4, "groups"},         {"moe", 4, 3, "topkGroups"},
      {"moe", 6, INFINITY, "scale"},  {"moe", 2, 1e300, "topK"},
  };
  for (const Case& test : cases) {
    call = good_call(test.op, *stream);
    call.attributes[test.attribute] = test.value;
    CHECK_THROWS("INVALID_OPTION", enqueue_op(call), std::string(test.op) + ": ", test.text);
  }
}
