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

inline void check_holds(const char* file, int line, const std::string& message, const char* part) {
  if (message.find(part) != std::string::npos) return;
  std::string text = message.empty() ? "no fault" : message;
  fail(file, line, text.append(" lacks: ").append(part));
}

}  // namespace nibblet::test

/// `message` is that of a fault, and holds `part`.
#define CHECK_HOLDS(message, part) ::nibblet::test::check_holds(__FILE__, __LINE__, message, part)
