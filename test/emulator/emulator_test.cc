#include "kernels/cuda/device.h"
#include "kernels/cuda/launch.h"
#include "test/emulator/control.h"
#include "test/kernels/harness.h"

namespace nibblet {
namespace {

const CudaTarget target{nullptr, 4, 90, size_t{227} << 10, true};

__global__ void neighbours(int* out) {
  grid_dependency_wait();
  out[threadIdx.x] = __shfl_down_sync(~0u, int(threadIdx.x) * 10, 1, 16);
}

TEST(emulator_shuffle_down_stays_in_its_segment) {
  int out[64];
  CHECK_EQ(launch(target, {dim3(1), dim3(64)}, neighbours, out), cudaSuccess);
  for (int i = 0; i < 64; ++i) CHECK_EQ(out[i], i % 16 == 15 ? i * 10 : (i + 1) * 10);
}

}  // namespace
}  // namespace nibblet
