#include "test/runtime/op_calls.h"

using namespace nibblet;
using namespace nibblet::test;

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
