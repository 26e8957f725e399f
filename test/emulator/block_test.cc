#include <numeric>

#include "test/emulator/test_target.h"

namespace nibblet {
namespace {

using test::fault_of;
using test::Machine;
using test::run_block;
using test::test_target;

__global__ void rotate(int* out, int rounds) {
  __shared__ int ring[1024];
  int value = int(threadIdx.x);
  for (int round = 0; round < rounds; ++round) {
    ring[threadIdx.x] = value;
    __syncthreads();
    value = ring[(threadIdx.x + 1) % blockDim.x];
    __syncthreads();
  }
  out[threadIdx.x] = value;
}

TEST(emulator_a_barrier_waits_for_the_whole_block) {
  for (const int threads : {1, 31, 32, 100, 1024}) {
    std::vector<int> out(static_cast<size_t>(threads));
    run_block(unsigned(threads), rotate, out.data(), 7);
    for (int n = 0; n < threads; ++n) CHECK_EQ(out[size_t(n)], (n + 7) % threads);
  }
}

__global__ void votes(int* out) {
  const bool third = threadIdx.x % 3 == 0;
  out[threadIdx.x * 3] = __syncthreads_count(third);
  out[threadIdx.x * 3 + 1] = __syncthreads_and(third);
  out[threadIdx.x * 3 + 2] = __syncthreads_or(third);
}

TEST(emulator_barriers_vote) {
  int out[90 * 3];
  run_block(90, votes, out);
  for (int n = 0; n < 90; ++n) {
    CHECK_EQ(out[n * 3], 30);
    CHECK_EQ(out[n * 3 + 1], 0);
    CHECK_EQ(out[n * 3 + 2], 1);
  }
}

__global__ void some_leave(int* out) {
  __shared__ int sum;
  if (threadIdx.x == 0) sum = 0;
  __syncthreads();
  if (threadIdx.x >= 40) return;
  atomicAdd(&sum, 1);
  __syncthreads();
  out[threadIdx.x] = sum;
}

TEST(emulator_a_barrier_does_not_wait_for_threads_that_ended) {
  int out[40];
  run_block(64, some_leave, out);
  for (const int sum : out) CHECK_EQ(sum, 40);
}

__global__ void coordinates(int* visits) {
  const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  ++visits[block * blockDim.x * blockDim.y * blockDim.z + thread];
}

TEST(emulator_each_thread_of_each_block_runs_once) {
  std::vector<int> visits(2 * 3 * 4 * 5 * 3 * 2);
  CHECK_EQ(launch(test_target, {dim3(2, 3, 4), dim3(5, 3, 2)}, coordinates, visits.data()), cudaSuccess);
  for (const int count : visits) CHECK_EQ(count, 1);
}

__global__ void last_block_sums(const int* values, int* parts, unsigned* counter, int* sum) {
  __shared__ bool last;
  const int value = __reduce_add_sync(~0u, values[blockIdx.x * 32 + threadIdx.x]);
  if (threadIdx.x == 0) {
    parts[blockIdx.x] = value;
    __threadfence();
    last = atomicInc(counter, gridDim.x - 1) == gridDim.x - 1;
  }
  __syncthreads();
  if (!last) return;
  int total = 0;
  for (unsigned i = threadIdx.x; i < gridDim.x; i += 32) total += parts[i];
  total = __reduce_add_sync(~0u, total);
  if (threadIdx.x == 0) *sum = total;
}

TEST(emulator_the_last_block_sums_and_leaves_the_counter_zero) {
  std::vector<int> values(32 * 50), parts(50);
  std::iota(values.begin(), values.end(), 1);
  unsigned counter = 0;
  for (int round = 0; round < 2; ++round) {
    int sum = 0;
    CHECK_EQ(launch(test_target, {dim3(50), dim3(32)}, last_block_sums, values.data(), parts.data(), &counter,
                    &sum),
             cudaSuccess);
    CHECK_EQ(sum, 1600 * 1601 / 2);
    CHECK_EQ(counter, 0u);
  }
}

__global__ void lacks_barrier(int* out) {
  int* value = dynamic_shared<int>();
  if (threadIdx.x == 0) *value = 7;
  out[threadIdx.x] = *value;
}

TEST(emulator_the_reverse_order_shows_a_missing_barrier) {
  int out[2];
  const LaunchShape shape{dim3(1), dim3(2), sizeof(int)};
  {
    const Machine machine({.reverse = false});
    CHECK_EQ(launch(test_target, shape, lacks_barrier, out), cudaSuccess);
    CHECK_EQ(out[1], 7);
  }
  const Machine machine({.reverse = true});
  CHECK_EQ(launch(test_target, shape, lacks_barrier, out), cudaSuccess);
  CHECK_EQ(unsigned(out[1]), 0xeeeeeeeeu);
}

TEST(emulator_both_orders_agree_where_barriers_stand) {
  for (const bool reverse : {false, true}) {
    const Machine machine({.reverse = reverse});
    std::vector<int> out(1000);
    run_block(1000, rotate, out.data(), 3);
    for (int n = 0; n < 1000; ++n) CHECK_EQ(out[size_t(n)], (n + 3) % 1000);
  }
}

__global__ void wait_apart() {
  if (threadIdx.x < 32)
    __syncthreads();
  else
    __syncthreads();
}
__global__ void wait_for_each_other() {
  if (threadIdx.x < 10) __syncwarp();
  __syncthreads();
}
__global__ void spin() {
  volatile int* flag = dynamic_shared<int>();
  while (*flag != 1) __nanosleep(100);
}
__global__ void trap() { __trap(); }
__global__ void overrun(int bytes) { dynamic_shared<char>()[bytes] = 1; }

TEST(emulator_names_what_threads_wait_for) {
  CHECK_HOLDS(fault_of([] { run_block(64, wait_apart); }), "wait at different barriers");
  const std::string message = fault_of([] { run_block(32, wait_for_each_other); });
  CHECK_HOLDS(message, "10 threads, the first of them 0, wait for __syncwarp");
  CHECK_HOLDS(message, "22 threads, the first of them 10, wait for a barrier");
  CHECK_HOLDS(message, "wait_for_each_other()");
  CHECK_HOLDS(fault_of([] { launch(test_target, {dim3(1), dim3(3), 4}, spin); }),
              "another thread, in a loop");
  CHECK_HOLDS(fault_of([] { run_block(1, trap); }), "__trap()");
}

TEST(emulator_finds_writes_past_dynamic_shared_memory) {
  const LaunchShape shape{dim3(1), dim3(1), 100};
  CHECK(fault_of([&] { launch(test_target, shape, overrun, 99); }).empty());
  CHECK_HOLDS(fault_of([&] { launch(test_target, shape, overrun, 104); }), "wrote 5 bytes past");
}

TEST(emulator_runs_again_after_a_fault) {
  int out[64];
  fault_of([] { run_block(64, wait_apart); });
  run_block(64, rotate, out, 1);
  for (int n = 0; n < 64; ++n) CHECK_EQ(out[n], (n + 1) % 64);
}

}  // namespace
}  // namespace nibblet
