#include "native/runtime/stream.h"

#include "test/runtime/fixture.h"

using namespace nibblet;
using namespace nibblet::test;

TEST(stream_runs_in_order) {
  auto stream = open_stream();
  std::vector<int> order;
  Outcomes outcomes;
  for (int i = 0; i < 100; ++i) {
    stream->enqueue(call([&order, i](const Execution&) { order.push_back(i); }));
    if (i % 10 == 9)
      stream->sync([&order, done = outcomes.completion(), i](Outcome outcome) {
        order.push_back(1000 + i);
        done(std::move(outcome));
      });
  }
  for (const Outcome& outcome : outcomes.wait(10)) CHECK(!outcome.error && !outcome.cancelled);
  CHECK_EQ(order.size(), 110u);
  int next = 0;
  for (int value : order) {
    if (value >= 1000) {
      CHECK_EQ(value, 1000 + next - 1);
    } else {
      CHECK_EQ(value, next++);
    }
  }
}

TEST(stream_reads_what_was_written_before) {
  auto stream = open_stream();
  Tensor tensor = make_tensor(DType::i32, {4});
  for (int32_t value : {1, 2, 3}) {
    stream->enqueue(call([tensor, value](const Execution&) { std::fill_n(tensor.as<int32_t>(), 4, value); }));
    Outcome outcome = read(*stream, tensor);
    CHECK_EQ(outcome.bytes.size(), 16u);
    CHECK_EQ(reinterpret_cast<const int32_t*>(outcome.bytes.data())[3], value);
  }
}

TEST(stream_step_is_seen_by_later_commands) {
  auto stream = open_stream();
  std::vector<int32_t> seen;
  auto look = call(
      [&seen](const Execution& execution) { seen.push_back(execution.step ? execution.step->tokens : -1); });
  stream->enqueue(look);
  stream->step(make_input_of({1, 2}));
  stream->enqueue(look);
  stream->enqueue(look);
  stream->step(make_input_of({1, 2, 3}));
  stream->enqueue(look);
  CHECK(!sync(*stream).error);
  CHECK(seen == std::vector<int32_t>({-1, 2, 2, 3}));
}

TEST(stream_capture_does_not_nest) {
  auto stream = open_stream();
  Tensor result = make_tensor(DType::f32, {2, 3});
  CHECK_THROWS("INVALID_OPTION", stream->end_capture({}, false), "no capture is under way");
  stream->begin_capture();
  CHECK_THROWS("INVALID_OPTION", stream->begin_capture(), "captures do not nest");
  CHECK_THROWS("INVALID_OPTION", stream->step(make_input_of({1})), "during capture");
  bool ran = false;
  stream->enqueue(call([&ran](const Execution&) { ran = true; }));
  CHECK(!sync(*stream).error);
  CHECK(!ran);
  CHECK_THROWS("INVALID_OPTION", stream->end_capture({}, true), "a result that has rows");
  CHECK_THROWS("INVALID_OPTION", stream->end_capture(make_tensor(DType::f32, {}), true),
               "a result that has rows");
  auto graph = stream->end_capture(result, true);
  stream->begin_capture();
  Outcomes outcomes;
  CHECK_THROWS("INVALID_OPTION", stream->launch(graph, make_input_of({1}), nullptr, outcomes.completion()),
               "during capture");
  stream->abandon_capture();
  CHECK_THROWS("INVALID_OPTION", stream->end_capture({}, false));
  stream->launch(graph, make_input_of({1}), nullptr, outcomes.completion());
  // One row is wanted of the two.
  CHECK_EQ(outcomes.wait(1).at(0).bytes.size(), 12u);
  CHECK(ran);
}

TEST(stream_refuses_graphs_of_other_streams) {
  auto a = open_stream(1), b = open_stream(2);
  a->begin_capture();
  auto graph = a->end_capture({}, false);
  Outcomes outcomes;
  CHECK_THROWS("INVALID_OPTION", b->launch(graph, make_input_of({1}), nullptr, outcomes.completion()),
               "captured it");
  a.reset();
  CHECK_THROWS("INVALID_OPTION", b->launch(graph, make_input_of({1}), nullptr, outcomes.completion()),
               "captured it");
}

TEST(stream_reports_no_more_rows_than_there_are) {
  auto stream = open_stream();
  stream->begin_capture();
  auto graph = stream->end_capture(make_tensor(DType::f32, {1, 2}), true);
  Batch batch(1);
  batch.add(0, 0, 2);
  batch.ids = {5, 6};
  batch.rows = {{0, 0}, {1, 0}};
  Outcomes outcomes;
  stream->launch(graph, make_input(pack_step(batch.step())), nullptr, outcomes.completion());
  CHECK_ERROR("OP_FAILED", outcomes.wait(1).at(0).error, "2 rows of a result of 1");
}

TEST(stream_failure_poisons) {
  auto stream = open_stream();
  Gate gate;
  bool ran = false;
  Outcomes outcomes;
  stream->begin_capture();
  stream->enqueue(call([&ran](const Execution&) { ran = true; }));
  auto graph = stream->end_capture({}, false);
  stream->enqueue(gate.command());
  stream->sync(outcomes.completion());
  stream->enqueue(call([](const Execution&) { throw Error("OP_FAILED", "embed: broken", "embed"); }));
  stream->launch(graph, make_input_of({1}), nullptr, outcomes.completion());
  stream->enqueue(call([](const Execution&) { throw Error("OP_FAILED", "the second error", "x"); }));
  stream->sync(outcomes.completion());
  stream->read(make_tensor(DType::f32, {1}), outcomes.completion());
  gate.open();
  auto all = outcomes.wait(4);
  CHECK(!all[0].error);
  for (size_t i = 1; i < 4; ++i) {
    CHECK_ERROR("OP_FAILED", all[i].error, "embed: broken");
    CHECK_EQ(all[i].error->op(), "embed");
    CHECK(all[i].bytes.empty());
  }
  CHECK(!ran);
  CHECK_THROWS("OP_FAILED", stream->throw_if_unusable(), "embed: broken");
  CHECK_THROWS("OP_FAILED", stream->enqueue(call([](const Execution&) {})), "embed: broken");
  CHECK_THROWS("OP_FAILED", stream->sync(outcomes.completion()));
  CHECK_THROWS("OP_FAILED", stream->begin_capture());
  CHECK_THROWS("OP_FAILED", stream->launch(graph, make_input_of({1}), nullptr, outcomes.completion()));
  CHECK_THROWS("OP_FAILED", stream->step(make_input_of({1})));
  stream->close();
  CHECK_THROWS("DISPOSED", stream->sync(outcomes.completion()));
  CHECK_EQ(outcomes.wait(4).size(), 4u);
  // Another stream of the device is not concerned.
  CHECK(!sync(*open_stream()).error);
}

TEST(stream_turns_other_exceptions_into_errors) {
  auto stream = open_stream();
  stream->enqueue(call([](const Execution&) { throw std::bad_alloc(); }));
  CHECK_ERROR("STREAM_FAILED", sync(*stream).error, "bad_alloc");
}

TEST(stream_cancel_cuts_a_graph_short) {
  auto stream = open_stream();
  Gate gate;
  int after = 0;
  stream->begin_capture();
  stream->enqueue(gate.command());
  stream->enqueue(call([&after](const Execution&) { ++after; }));
  auto graph = stream->end_capture(make_tensor(DType::f32, {4}), false);
  auto cancel = std::make_shared<std::atomic<bool>>(false);
  Outcomes outcomes;
  stream->launch(graph, make_input_of({1}), cancel, outcomes.completion());
  gate.wait_entered();
  cancel->store(true);
  Outcome cut = outcomes.wait(1).at(0);
  CHECK(cut.cancelled);
  CHECK(!cut.error);
  CHECK(cut.bytes.empty());
  CHECK_EQ(after, 0);
  // Not poisoned: the same graph runs to its end, and one that is cancelled before it starts runs nothing.
  gate.open();
  stream->launch(graph, make_input_of({1}), nullptr, outcomes.completion());
  stream->launch(graph, make_input_of({1}), cancel, outcomes.completion());
  auto all = outcomes.wait(3);
  CHECK(!all[1].cancelled && !all[1].error);
  CHECK_EQ(all[1].bytes.size(), 16u);
  CHECK(all[2].cancelled);
  CHECK_EQ(after, 1);
}

TEST(stream_close_completes_everything_once) {
  for (int round = 0; round < 20; ++round) {
    auto stream = open_stream();
    Gate gate;
    int ran = 0;
    Outcomes outcomes;
    stream->begin_capture();
    stream->enqueue(gate.command());
    stream->enqueue(call([&ran](const Execution&) { ++ran; }));
    auto graph = stream->end_capture({}, false);
    stream->launch(graph, make_input_of({1}), nullptr, outcomes.completion());
    for (int i = 0; i < 10; ++i) stream->sync(outcomes.completion());
    stream->enqueue(call([&ran](const Execution&) { ++ran; }));
    stream->launch(graph, make_input_of({1}), nullptr, outcomes.completion());
    // Half the time before the engine thread has come to it.
    if (round % 2 == 0) gate.wait_entered();
    stream->close();
    auto all = outcomes.wait(12);
    CHECK_EQ(all.size(), 12u);
    for (const Outcome& outcome : all) CHECK_ERROR("STREAM_FAILED", outcome.error, "closed before");
    CHECK_EQ(ran, 0);
    stream->close();
    CHECK_THROWS("DISPOSED", stream->enqueue(call([](const Execution&) {})));
    CHECK_EQ(outcomes.wait(12).size(), 12u);
  }
}

TEST(streams_take_turns) {
  auto a = open_stream(), b = open_stream();
  Gate gate;
  std::string order;
  Outcomes outcomes;
  a->enqueue(gate.command());
  gate.wait_entered();
  for (int i = 0; i < 10; ++i) a->enqueue(call([&order](const Execution&) { order += 'a'; }));
  for (int i = 0; i < 10; ++i) b->enqueue(call([&order](const Execution&) { order += 'b'; }));
  a->sync(outcomes.completion());
  b->sync(outcomes.completion());
  gate.open();
  CHECK_EQ(outcomes.wait(2).size(), 2u);
  CHECK_EQ(order.size(), 20u);
  for (size_t i = 1; i < order.size(); ++i) CHECK(order[i] != order[i - 1]);
}

TEST(stream_keeps_buffers_until_work_is_done) {
  auto device = Device::open("cpu");
  int64_t before = device->allocated_bytes();
  auto stream = open_stream();
  Gate gate;
  std::weak_ptr<Buffer> watched;
  Outcomes outcomes;
  stream->enqueue(gate.command());
  std::shared_ptr<Graph> graph;
  {
    Tensor tensor = make_tensor(DType::f32, {1024});
    watched = tensor.buffer;
    stream->enqueue(call([tensor](const Execution&) { tensor.as<float>()[0] = 1; }));
    stream->read(tensor, outcomes.completion());
    stream->begin_capture();
    stream->enqueue(call([tensor](const Execution&) { tensor.as<float>()[0] += 1; }));
    graph = stream->end_capture(tensor, false);
  }
  CHECK(!watched.expired());
  gate.open();
  CHECK_EQ(reinterpret_cast<const float*>(outcomes.wait(1).at(0).bytes.data())[0], 1.0f);
  stream->launch(graph, make_input_of({1}), nullptr, outcomes.completion());
  CHECK_EQ(reinterpret_cast<const float*>(outcomes.wait(2).at(1).bytes.data())[0], 2.0f);
  CHECK(!watched.expired());
  stream->close();
  // The stream is gone, the graph still holds what it uses.
  stream.reset();
  CHECK(!watched.expired());
  graph.reset();
  CHECK(watched.expired());
  CHECK_EQ(device->allocated_bytes(), before);
}

TEST(stream_destruction_drops_what_waits) {
  auto device = Device::open("cpu");
  int64_t before = device->allocated_bytes();
  for (int round = 0; round < 20; ++round) {
    Outcomes outcomes;
    Gate gate;
    auto stream = open_stream();
    stream->enqueue(gate.command());
    for (int i = 0; i < 5; ++i) {
      Tensor tensor = make_tensor(DType::f32, {64});
      stream->enqueue(call([tensor](const Execution&) {}));
      stream->read(tensor, outcomes.completion());
    }
    stream->workspace(1 << 16);
    stream.reset();
    CHECK_EQ(outcomes.wait(5).size(), 5u);
  }
  CHECK_EQ(device->allocated_bytes(), before);
}

TEST(streams_come_and_go_from_many_threads) {
  std::vector<std::thread> hosts;
  std::atomic<int> completed{0};
  for (int host = 0; host < 4; ++host) {
    hosts.emplace_back([&completed, host] {
      for (int i = 0; i < 30; ++i) {
        Outcomes outcomes;
        auto stream = open_stream(1 + host % 3);
        std::vector<int> slices(8);
        stream->enqueue(call([&slices](const Execution& execution) {
          Pool::instance().run(
              execution.threads, 8, [&](int slice) { slices[size_t(slice)] = slice; }, execution.cancelled);
        }));
        stream->sync(outcomes.completion());
        if (i % 3 == 0) outcomes.wait(1);
        if (i % 2 == 0) stream->close();
        stream.reset();
        completed += int(outcomes.wait(1).size());
      }
    });
  }
  for (std::thread& host : hosts) host.join();
  CHECK_EQ(completed.load(), 120);
}

TEST(stream_checks_its_threads) {
  for (int threads : {0, -1, 1025, INT32_MAX})
    CHECK_THROWS("INVALID_OPTION", open_stream(threads), "1 to 1024");
}

TEST(device_names) {
  for (const char* name : {"", "cuda", "cuda:0", "CPU"})
    CHECK_THROWS("NO_DEVICE", Device::open(name), "use 'cpu'");
  CHECK(Device::open("cpu") == Device::open("cpu"));
}

TEST(buffer_that_cannot_be) {
  auto device = Device::open("cpu");
  int64_t before = device->allocated_bytes();
  for (size_t bytes : {size_t{1} << 46, size_t{1} << 62, SIZE_MAX, SIZE_MAX - 4096}) {
    CHECK_THROWS("OUT_OF_MEMORY", Buffer(device, bytes), "cannot allocate");
  }
  CHECK_EQ(device->allocated_bytes(), before);
  Buffer empty(device, 0);
  CHECK(empty.data() != nullptr);
}
