#include <chrono>
#include <cstring>

#include "test/kernels/harness.h"
#if NIBBLET_CUDA
#include <cuda_runtime_api.h>
#endif

using nibblet::test::failures;
using nibblet::test::tests;

namespace {

/// Tests whose names begin with cuda_ need a GPU.
bool can_run(const char* name) {
#if NIBBLET_CUDA
  static const bool has_gpu = [] {
    int count = 0;
    return cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
  }();
  return has_gpu || std::strncmp(name, "cuda_", 5) != 0;
#else
  static_cast<void>(name);
  return true;
#endif
}

}  // namespace

int main(int argc, char** argv) {
  bool list = false;
  std::vector<const char*> filters;
  for (int i = 1; i < argc; i++) {
    if (std::strcmp(argv[i], "--list") == 0) {
      list = true;
    } else if (argv[i][0] == '-') {
      std::fprintf(stderr, "unknown option %s; usage: nibblet-test [--list] [filter...]\n", argv[i]);
      return 2;
    } else {
      filters.push_back(argv[i]);
    }
  }
  int passed = 0, failed = 0, skipped = 0;
  for (const auto& test : tests()) {
    bool chosen = filters.empty();
    for (const char* filter : filters) chosen |= std::strstr(test.name, filter) != nullptr;
    if (!chosen) continue;
    if (list) {
      std::printf("%s\n", test.name);
      continue;
    }
    if (!can_run(test.name)) {
      std::printf("skip %s: there is no GPU\n", test.name);
      skipped++;
      continue;
    }
    failures() = 0;
    auto start = std::chrono::steady_clock::now();
    test.body();
    std::chrono::duration<double, std::milli> time = std::chrono::steady_clock::now() - start;
    std::printf("%s %s (%.0f ms)\n", failures() == 0 ? "ok  " : "FAIL", test.name, time.count());
    std::fflush(stdout);
    (failures() == 0 ? passed : failed)++;
  }
  if (list) return 0;
  std::printf("%d passed, %d failed", passed, failed);
  if (skipped > 0) std::printf(", %d skipped", skipped);
  std::printf("\n");
  if (passed + failed + skipped == 0) std::fprintf(stderr, "no test matches\n");
  return failed == 0 && passed + skipped > 0 ? 0 : 1;
}
