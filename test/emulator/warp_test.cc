#include "test/emulator/test_target.h"

namespace nibblet {
namespace {

using test::fault_of;
using test::Machine;
using test::run_block;

struct Shuffles {
  int down, up, exchanged, indexed;
  long long wide;
  float fraction;
};

__global__ void shuffle_all(Shuffles* out, int width) {
  const int lane = int(threadIdx.x);
  Shuffles& own = out[lane];
  own.down = __shfl_down_sync(~0u, lane, 3, width);
  own.up = __shfl_up_sync(~0u, lane, 3, width);
  own.exchanged = __shfl_xor_sync(~0u, lane, 5, width);
  own.indexed = __shfl_sync(~0u, lane, 6, width);
  own.wide = __shfl_sync(~0u, (1ll << 40) + lane, 1);
  own.fraction = __shfl_xor_sync(~0u, float(lane) + 0.5f, 16);
}

TEST(emulator_shuffles_move_values_within_segments) {
  for (const int width : {8, 16, 32}) {
    Shuffles out[32];
    run_block(32, shuffle_all, out, width);
    for (int lane = 0; lane < 32; ++lane) {
      const int first = lane / width * width, in = lane % width;
      CHECK_EQ(out[lane].down, in + 3 < width ? lane + 3 : lane);
      CHECK_EQ(out[lane].up, in >= 3 ? lane - 3 : lane);
      CHECK_EQ(out[lane].exchanged, first + (in ^ 5));
      CHECK_EQ(out[lane].indexed, first + 6);
      CHECK_EQ(out[lane].wide, (1ll << 40) + 1);
      CHECK_EQ(out[lane].fraction, float(lane ^ 16) + 0.5f);
    }
  }
}

struct Votes {
  unsigned even, match;
  int any_above_40, all_above_40, sum, least;
  unsigned greatest, bits;
};

__global__ void vote(Votes* out) {
  const unsigned n = threadIdx.x;
  Votes& own = out[n];
  own.even = __ballot_sync(~0u, n % 2 == 0);
  own.any_above_40 = __any_sync(~0u, n > 40);
  own.all_above_40 = __all_sync(~0u, n > 40);
  own.match = __match_any_sync(~0u, int(n % 3));
  own.sum = __reduce_add_sync(~0u, int(n) - 10);
  own.least = __reduce_min_sync(~0u, int(n) - 10);
  own.greatest = __reduce_max_sync(~0u, n);
  own.bits = __reduce_or_sync(~0u, n);
}

TEST(emulator_votes_and_reductions_are_of_one_warp) {
  Votes out[64];
  run_block(64, vote, out);
  for (int n = 0; n < 64; ++n) {
    const int first = n / 32 * 32;
    CHECK_EQ(out[n].even, 0x55555555u);
    CHECK_EQ(out[n].any_above_40, first == 32 ? 1 : 0);
    CHECK_EQ(out[n].all_above_40, 0);
    unsigned match = 0;
    for (int lane = 0; lane < 32; ++lane) match |= unsigned((first + lane) % 3 == n % 3) << lane;
    CHECK_EQ(out[n].match, match);
    CHECK_EQ(out[n].sum, 496 + 32 * (first - 10));
    CHECK_EQ(out[n].least, first - 10);
    CHECK_EQ(out[n].greatest, unsigned(first + 31));
    CHECK_EQ(out[n].bits, unsigned(first == 0 ? 31 : 63));
  }
}

__global__ void halves(int* out) {
  const int lane = int(threadIdx.x);
  if (lane < 16)
    out[lane] = __shfl_xor_sync(0x0000ffffu, lane, 1);
  else
    out[lane] = __popc(__ballot_sync(0xffff0000u, lane % 4 == 0));
}

TEST(emulator_halves_of_a_warp_go_their_ways) {
  int out[32];
  run_block(32, halves, out);
  for (int lane = 0; lane < 32; ++lane) CHECK_EQ(out[lane], lane < 16 ? lane ^ 1 : 4);
}

__global__ void some_end(unsigned* out, int source) {
  if (threadIdx.x >= 20) return;
  out[threadIdx.x] = __ballot_sync(~0u, true) + __shfl_sync(~0u, 0u, source);
}

TEST(emulator_lanes_that_ended_do_not_vote) {
  unsigned out[20];
  run_block(32, some_end, out, 3);
  for (const unsigned ballot : out) CHECK_EQ(ballot, 0xfffffu);
  run_block(20, some_end, out, 3);
  for (const unsigned ballot : out) CHECK_EQ(ballot, 0xfffffu);
}

TEST(emulator_refuses_to_read_a_lane_that_ended) {
  unsigned out[20];
  CHECK_HOLDS(fault_of([&] { run_block(32, some_end, out, 25); }), "shuffles from lane 25");
}

__global__ void diverge() {
  if (threadIdx.x < 4)
    __shfl_sync(~0u, 1, 0);
  else
    __shfl_sync(~0u, 1, 1);
}
__global__ void leave_itself_out() { __syncwarp(~1u); }
__global__ void odd_width() { __shfl_sync(~0u, 1, 0, 12); }

TEST(emulator_names_the_lanes_that_diverged) {
  const Machine machine({.reverse = false});
  const std::string message = fault_of([] { run_block(32, diverge); });
  CHECK_HOLDS(message, "diverge");
  CHECK_HOLDS(message, "lanes 0x0000000f wait in a shuffle");
  CHECK_HOLDS(message, "thread (4, 0, 0)");
  CHECK_HOLDS(message, "warp_test.cc");
  CHECK_HOLDS(fault_of([] { run_block(32, leave_itself_out); }), "leaves out the lane that calls it");
  CHECK_HOLDS(fault_of([] { run_block(32, odd_width); }), "width");
}

}  // namespace
}  // namespace nibblet
