#pragma once

#include <cstddef>
#include <functional>
#include <tuple>
#include <utility>

#include "test/emulator/include/runtime_api.h"

namespace nibblet::emulated {

struct Shape {
  dim3 grid;
  dim3 block;
  size_t shared_bytes;
  bool programmatic_edge;  ///< the kernel may start before the one before it ended
};

struct Kernel {
  const void* function;
  Shape shape;
  std::function<void()> body;  ///< calls the kernel with its parameters, for one thread
};

/// Checks the configuration, then runs the kernel or, where its stream captures, records it.
cudaError_t launch(const cudaLaunchConfig_t& config, const void* function, std::function<void()> body);

}  // namespace nibblet::emulated

/// The parameters are copied now, as CUDA does.
template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  return nibblet::emulated::launch(
      *config, reinterpret_cast<const void*>(kernel),
      [kernel, parameters = std::tuple<Parameters...>(std::forward<Arguments>(arguments)...)] {
        std::apply(kernel, parameters);
      });
}
