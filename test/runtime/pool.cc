#include "native/runtime/pool.h"

#include <memory>

#include "test/runtime/fixture.h"

using namespace nibblet;
using namespace nibblet::test;

namespace {

/// Runs `slices` slices and checks that each ran once and that all were over when run() returned.
void check_run(int threads, int slices) {
  std::vector<std::atomic<int>> runs(static_cast<size_t>(slices));
  std::atomic<int> total{0};
  Pool::instance().run(
      threads, slices,
      [&](int slice) {
        runs[size_t(slice)].fetch_add(1);
        total.fetch_add(1);
      },
      nullptr);
  CHECK_EQ(total.load(), slices);
  for (auto& count : runs) CHECK_EQ(count.load(), 1);
}

}  // namespace

TEST(pool_runs_each_slice_once) {
  Pool::instance().retain();
  for (int threads : {1, 2, 3, 8}) {
    for (int slices : {0, 1, 2, 3, 7, 64, 1000}) check_run(threads, slices);
  }
  Pool::instance().release();
}

TEST(pool_many_short_phases) {
  Pool::instance().retain();
  // Phases of changing width: a worker that is not wanted in one must be ready for the next.
  for (int i = 0; i < 3000; ++i) check_run(1 + i % 5, 1 + i % 11);
  Pool::instance().release();
}

TEST(pool_wakes_workers_that_sleep) {
  Pool::instance().retain();
  for (int i = 0; i < 5; ++i) {
    check_run(4, 16);
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  Pool::instance().release();
}

TEST(pool_writes_of_slices_are_visible) {
  Pool::instance().retain();
  std::vector<int> values(257);
  for (int round = 1; round <= 200; ++round) {
    Pool::instance().run(4, int(values.size()), [&](int slice) { values[size_t(slice)] += slice; }, nullptr);
  }
  for (size_t i = 0; i < values.size(); ++i) CHECK_EQ(values[i], int(i) * 200);
  Pool::instance().release();
}

TEST(pool_stops_and_starts_again) {
  for (int i = 0; i < 25; ++i) {
    Pool::instance().retain();
    check_run(1 + i % 4, 20);
    Pool::instance().retain();
    Pool::instance().release();
    check_run(3, 5);
    Pool::instance().release();
  }
}

TEST(pool_cancellation_stops_handing_out) {
  Pool::instance().retain();
  for (int threads : {1, 2, 4}) {
    std::atomic<bool> cancelled{false};
    std::atomic<int> started{0}, running{0};
    Pool::instance().run(
        threads, 100000,
        [&](int) {
          running.fetch_add(1);
          if (started.fetch_add(1) == 9) cancelled.store(true);
          running.fetch_sub(1);
        },
        &cancelled);
    CHECK_EQ(running.load(), 0);
    CHECK(started.load() >= 10);
    // Each other thread may have been past its look at the flag, once.
    CHECK(started.load() < 100000);
    std::atomic<int> after{0};
    Pool::instance().run(threads, 10, [&](int) { after.fetch_add(1); }, &cancelled);
    CHECK_EQ(after.load(), 0);
  }
  Pool::instance().release();
}

TEST(pool_callers_take_turns) {
  Pool::instance().retain();
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 3; ++caller) {
    callers.emplace_back([caller] {
      for (int i = 0; i < 200; ++i) check_run(2 + caller, 1 + i % 9);
    });
  }
  for (std::thread& caller : callers) caller.join();
  Pool::instance().release();
}

TEST(pool_counts_cores) { CHECK(physical_cores() >= 1); }
