#include "native/runtime/ops.h"

#include "kernels/moe/moe.h"
#include "test/runtime/fixture.h"

using namespace nibblet;
using namespace nibblet::test;

namespace {

using enum DType;

std::shared_ptr<Weight> make_weight(int32_t out, int32_t in, int32_t matrices = 1) {
  return std::make_shared<Weight>(Device::open("cpu"), Format::f32, Layout::rows, matrices, out, in);
}

/// A call that is right in every respect.
OpCall good_call(const std::string& name, Stream& stream) {
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

namespace {

/// Runs one op on a step in a fresh stream.
Outcome run_op(const std::string& name, const std::shared_ptr<const StepInput>& input,
               void (*change)(OpCall&) = nullptr) {
  auto stream = open_stream();
  if (input) stream->step(input);
  OpCall call = good_call(name, *stream);
  if (change) change(call);
  enqueue_op(call);
  return sync(*stream);
}

std::shared_ptr<const StepInput> step_of(int32_t slot, int32_t page, std::vector<int32_t> ids,
                                         uint32_t flags = 0, bool samples = false) {
  Batch batch(1);
  batch.add(slot, 0, int32_t(ids.size()), flags, {page});
  batch.ids = ids;
  Sampling sampling{};
  sampling.logprobs = -1;
  if (samples) batch.sample_last(sampling);
  return make_input(pack_step(batch.step()));
}

}  // namespace

TEST(ops_reject_steps_that_do_not_fit) {
  for (const char* name : {"embed", "linear", "mamba", "attention", "moe", "sample"}) {
    CHECK_ERROR("OP_FAILED", run_op(name, nullptr).error, name, "no step was set");
    CHECK(!run_op(name, step_of(2, 5, {1, 2, 3}, 0, std::string(name) == "sample")).error);
  }
  for (const char* name : {"embed", "linear", "mamba", "attention", "moe"}) {
    CHECK_ERROR("OP_FAILED", run_op(name, step_of(0, 0, {1, 2, 3, 4, 5, 6})).error, name, "6 tokens");
  }
  for (const char* name : {"embed", "mamba", "attention", "sample"}) {
    CHECK_ERROR("OP_FAILED", run_op(name, step_of(3, 0, {1})).error, name, "slot 3 does not exist");
  }
  for (const char* name : {"embed", "mamba", "attention"}) {
    auto without_slots = [](OpCall& call) { call.operands[0] = std::monostate{}; };
    CHECK_ERROR("OP_FAILED", run_op(name, step_of(0, 0, {-1}, kDecode), without_slots).error, name,
                "needs `slots`");
  }
  for (int32_t page : {-1, 6, INT32_MAX}) {
    CHECK_ERROR("OP_FAILED", run_op("attention", step_of(0, page, {1})).error, "attention: page",
                "does not exist");
  }
  for (int32_t id : {-2, 11, INT32_MAX, INT32_MIN}) {
    Outcome outcome = run_op("embed", step_of(0, 0, {id}));
    CHECK_ERROR("OP_FAILED", outcome.error, "embed: token id", "the vocabulary of 11");
    CHECK_EQ(outcome.error->op(), "embed");
  }
}

TEST(ops_check_ids_that_come_from_slots_and_lists) {
  // A slot whose last sampled token is no row of the table.
  for (int32_t token : {-1, 11}) {
    static int32_t given;
    given = token;
    auto spoil = [](OpCall& call) { std::get<Tensor>(call.operands[0]).as<Slot>()[1].token = given; };
    CHECK_ERROR("OP_FAILED", run_op("embed", step_of(1, 0, {-1}, kDecode), spoil).error,
                "embed: the sampled token");
  }
  for (int32_t id : {11, INT32_MAX}) {
    CHECK_ERROR("OP_FAILED", run_op("sample", step_of(0, 0, {id}, kCount, true)).error, "sample: token id");
  }
  for (int32_t id : {-1, 11}) {
    Batch batch(1);
    batch.add(0, 0, 1);
    batch.ids = {1};
    Sampling sampling{};
    sampling.logprobs = -1;
    sampling.flags = kStart | kThinking;
    sampling.forced_first = batch.list({3, id});
    sampling.forced_count = 2;
    batch.sample_last(sampling);
    CHECK_ERROR("OP_FAILED", run_op("sample", make_input(pack_step(batch.step(), batch.lists))).error,
                "sample: forced id");
  }
  auto negative = [](OpCall& call) { std::get<Tensor>(call.operands[0]).as<Slot>()[0].forced = -1; };
  CHECK_ERROR("OP_FAILED", run_op("sample", step_of(0, 0, {1}, 0, true), negative).error, "negative count");
}

TEST(ops_graph_equals_eager) {
  Random random(5);
  Tensor table = make_tensor({11, 16}, random.normals(11 * 16));
  auto weight = make_weight(6, 16);
  std::vector<float> elements = random.normals(6 * 16);
  std::memcpy(weight->matrix(0), elements.data(), elements.size() * 4);
  auto stream = open_stream();
  Tensor x = make_tensor(f32, {5, 16}), y = make_tensor(f32, {5, 6});
  auto enqueue = [&] {
    enqueue_op({&op_named("embed"), stream.get(), {Operand{}, table, x}, {}});
    enqueue_op({&op_named("linear"), stream.get(), {x, weight, Operand{}, Operand{}, y}, {0, 1, 0, 0, 0, 0}});
  };
  stream->begin_capture();
  enqueue();
  auto graph = stream->end_capture(y, false);
  for (std::vector<int32_t> ids : {std::vector<int32_t>{1, 2, 3}, {10}, {4, 4, 0, 9, 7}}) {
    stream->step(make_input_of(ids));
    enqueue();
    Outcome eager = read(*stream, y);
    std::memset(y.as<float>(), 0xff, y.bytes());
    Outcomes outcomes;
    stream->launch(graph, make_input_of(ids), nullptr, outcomes.completion());
    Outcome replayed = outcomes.wait(1).at(0);
    CHECK(!eager.error && !replayed.error);
    size_t bytes = ids.size() * 6 * sizeof(float);
    CHECK(std::memcmp(eager.bytes.data(), replayed.bytes.data(), bytes) == 0);
    for (size_t t = 0; t < ids.size(); ++t) {
      for (size_t n = 0; n < 6; ++n) {
        double sum = 0;
        for (size_t k = 0; k < 16; ++k)
          sum += double(table.as<float>()[size_t(ids[t]) * 16 + k]) * elements[n * 16 + k];
        CHECK_NEAR(reinterpret_cast<const float*>(replayed.bytes.data())[t * 6 + n], sum, 1e-5);
      }
    }
  }
}
