#include <cmath>

#include "kernels/numerics/bf16.h"
#include "test/emulator/test_target.h"
#include "test/kernels/batch.h"

namespace nibblet {
namespace {

using test::fault_of;
using test::Machine;
using test::run_block;
using test::test_target;

constexpr uint32_t absent = 0xeeeeeeeeu;

__global__ void copy_in_groups(const uint4* from, uint32_t* seen) {
  uint4* shared = dynamic_shared<uint4>();
  for (int i = 0; i < 3; ++i) {
    copy_async(shared + i, from + i);
    copy_async_commit();
  }
  *seen++ = shared[0].x;
  copy_async_wait<2>();
  for (int i = 0; i < 3; ++i) *seen++ = shared[i].x;
  copy_async_wait<0>();
  for (int i = 0; i < 3; ++i) *seen++ = shared[i].w;
}

TEST(emulator_copies_arrive_when_their_group_is_waited_for) {
  const uint4 from[3] = {{1, 2, 3, 4}, {5, 6, 7, 8}, {9, 10, 11, 12}};
  uint32_t seen[7];
  CHECK_EQ(launch(test_target, {dim3(1), dim3(1), 48}, copy_in_groups, from, seen), cudaSuccess);
  const uint32_t expected[7] = {absent, 1, absent, absent, 4, 8, 12};
  for (int i = 0; i < 7; ++i) CHECK_EQ(seen[i], expected[i]);
}

__global__ void load(const char* from, uint4* to) { *to = load_stream(from, evict_first_policy()); }
__global__ void copy(const char* from) { copy_async(dynamic_shared<char>() + 8, from); }

TEST(emulator_refuses_loads_that_are_not_aligned) {
  alignas(16) char from[32] = {1};
  uint4 to{};
  run_block(1, load, from, &to);
  CHECK_EQ(to.x, 1u);
  CHECK_HOLDS(fault_of([&] { run_block(1, load, from + 8, &to); }), "a 16-byte load at");
  CHECK_HOLDS(fault_of([&] { launch(test_target, {dim3(1), dim3(1), 48}, copy, from); }), "cp.async to at");
}

__global__ void product(const uint16_t* a, const uint16_t* b, float* c) {
  const int g = int(threadIdx.x) / 4, t = int(threadIdx.x) % 4 * 2;
  auto pair = [](uint16_t low, uint16_t high) { return uint32_t(high) << 16 | low; };
  auto of_a = [&](int row, int column) { return pair(a[row * 16 + column], a[row * 16 + column + 1]); };
  auto of_b = [&](int row) { return pair(b[row * 8 + g], b[(row + 1) * 8 + g]); };
  float sums[4] = {c[g * 8 + t], c[g * 8 + t + 1], c[(g + 8) * 8 + t], c[(g + 8) * 8 + t + 1]};
  mma_bf16(sums, of_a(g, t), of_a(g + 8, t), of_a(g, t + 8), of_a(g + 8, t + 8), of_b(t), of_b(t + 8));
  c[g * 8 + t] = sums[0];
  c[g * 8 + t + 1] = sums[1];
  c[(g + 8) * 8 + t] = sums[2];
  c[(g + 8) * 8 + t + 1] = sums[3];
}

TEST(emulator_mma_multiplies_matrices) {
  test::Random random(3);
  uint16_t a[16 * 16], b[16 * 8];
  float c[16 * 8], expected[16 * 8];
  for (uint16_t& value : a) value = bf16_from_float(float(random.normal()));
  for (uint16_t& value : b) value = bf16_from_float(float(random.normal()));
  for (float& value : c) value = float(random.normal());
  for (int row = 0; row < 16; ++row)
    for (int column = 0; column < 8; ++column) {
      double sum = c[row * 8 + column];
      for (int k = 0; k < 16; ++k)
        sum += double(bf16_to_float(a[row * 16 + k])) * bf16_to_float(b[k * 8 + column]);
      expected[row * 8 + column] = float(sum);
    }
  run_block(32, product, a, b, c);
  for (int i = 0; i < 16 * 8; ++i) CHECK_NEAR(c[i], expected[i], 1e-6);
  CHECK_HOLDS(fault_of([&] { run_block(31, product, a, b, c); }), "all 32 lanes");
}

__global__ void bits(uint32_t* out) {
  out[0] = multiply_bf16x2(0x3fc04000u, 0xc0403f00u);  // 1.5 · -3, 2 · 0.5
  out[1] = multiply_bf16x2(0x80000000u, 0x3f803f80u);
  out[2] = __byte_perm(0x03020100u, 0x07060504u, 0x7531u);
  out[3] = __byte_perm(0x00008000u, 0, 0x0009u);
  out[4] = __funnelshift_r(0x11223344u, 0x55667788u, 8);
  out[5] = __brev(1);
  out[6] = unsigned(__ffs(0x10) * 100 + __clz(1));
  out[7] = __float_as_uint(__frcp_rn(4));
  out[8] = unsigned(__float2int_rn(2.5f)) + unsigned(__float2int_rn(1e20f));
  out[9] = unsigned(__dp4a(0x01ff0203, 0x02030405, 10));
}

TEST(emulator_computes_on_bits) {
  uint32_t out[10];
  run_block(1, bits, out);
  const uint32_t expected[10] = {0xc0903f80u, 0x80000000u, 0x07050301u, 0x000000ffu, 0x88112233u,
                                 0x80000000u, 531,         0x3e800000u, 0x80000001u, 32};
  for (int i = 0; i < 10; ++i) CHECK_EQ(out[i], expected[i]);
}

__global__ void waits_for_predecessor(int* out) {
  grid_dependency_wait();
  grid_dependency_launch();
  *out = 1;
}
__global__ void forgets_its_predecessor(int* out) { *out = 2; }

TEST(emulator_a_programmatic_edge_wants_a_wait) {
  CudaTarget target = test_target;
  target.programmatic_edges = true;
  const LaunchShape shape{dim3(1), dim3(1)};
  int out = 0;
  CHECK_EQ(launch(target, shape, waits_for_predecessor, &out), cudaSuccess);
  CHECK_EQ(out, 1);
  CHECK_HOLDS(fault_of([&] { launch(target, shape, forgets_its_predecessor, &out); }),
              "grid_dependency_wait");
  CHECK_EQ(launch(test_target, shape, forgets_its_predecessor, &out), cudaSuccess);
}

}  // namespace
}  // namespace nibblet
