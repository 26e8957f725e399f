#pragma once

#include <functional>
#include <string>
#include <vector>

#include "kernels/cuda/device.h"
#include "kernels/cuda/launch.h"
#include "test/emulator/control.h"
#include "test/kernels/harness.h"

namespace nibblet::test {

/// Launches of tests of the emulator: on the legacy stream, without programmatic edges.
inline constexpr CudaTarget test_target{nullptr, 4, 90, size_t{227} << 10, false};

/// Runs a kernel with one block; memory of the test serves as device memory.
template <class... Parameters, class... Arguments>
void run_block(unsigned threads, void (*kernel)(Parameters...), Arguments... arguments) {
  CHECK_EQ(launch(test_target, {dim3(1), dim3(threads)}, kernel, arguments...), cudaSuccess);
}

/// The message of the fault that `work` causes; empty: none. The device is as new afterwards.
inline std::string fault_of(const std::function<void()>& work) {
  const emulated::FaultRecorder recorder;
  work();
  const std::vector<std::string> messages = recorder.messages();
  CHECK_EQ(cudaDeviceReset(), cudaSuccess);
  return messages.empty() ? "" : messages[0];
}

/// The emulated machine is another one while it lives.
class Machine {
 public:
  explicit Machine(const emulated::Configuration& other) : before_(emulated::configuration()) {
    emulated::configuration() = other;
  }
  ~Machine() { emulated::configuration() = before_; }
  Machine(const Machine&) = delete;

 private:
  const emulated::Configuration before_;
};

inline bool holds(const std::string& text, const char* part) { return text.find(part) != std::string::npos; }

}  // namespace nibblet::test

/// `message` is that of a fault, and holds `part`.
#define CHECK_HOLDS(message, part)       \
  (::nibblet::test::holds(message, part) \
       ? void()                          \
       : ::nibblet::test::fail(__FILE__, __LINE__, "\"" + std::string(message) + "\" lacks \"" part "\""))
