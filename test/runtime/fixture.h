#pragma once

#include <unistd.h>

#include <chrono>
#include <condition_variable>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "native/runtime/ops.h"
#include "native/runtime/step_input.h"
#include "native/runtime/stream.h"
#include "test/kernels/batch.h"
#include "test/kernels/harness.h"

/// What the tests of native/runtime share.
namespace nibblet::test {

/// The runtime error that `body` throws, or nothing.
template <class Body>
std::optional<Error> error_of(Body body) {
  try {
    body();
  } catch (const Error& error) {
    return error;
  }
  return std::nullopt;
}

inline void check_error(const char* file, int line, const std::optional<Error>& error,
                        const std::string& code, const std::vector<std::string>& texts) {
  if (!error) return fail(file, line, "expected " + code + ", nothing was thrown");
  if (error->code() != code)
    return fail(file, line, "expected " + code + ", got " + error->code() + ": " + error->what());
  for (const std::string& text : texts) {
    if (std::string(error->what()).find(text) == std::string::npos) {
      fail(file, line, "expected '" + text + "' in: " + error->what());
    }
  }
}

/// Fails unless the body throws an Error of this code whose message holds the texts that follow.
#define CHECK_THROWS(code, body, ...)                                                              \
  ::nibblet::test::check_error(__FILE__, __LINE__, ::nibblet::test::error_of([&] { body; }), code, \
                               {__VA_ARGS__})
#define CHECK_ERROR(code, error, ...) \
  ::nibblet::test::check_error(__FILE__, __LINE__, error, code, {__VA_ARGS__})

/// Collects outcomes; `completion()` may be used any number of times.
class Outcomes {
 public:
  Completion completion() {
    return [this](Outcome outcome) {
      std::lock_guard lock(mutex_);
      all_.push_back(std::move(outcome));
      changed_.notify_all();
    };
  }
  /// All outcomes once there are `count`; fewer when that takes 20 seconds.
  std::vector<Outcome> wait(size_t count) {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, std::chrono::seconds(20), [&] { return all_.size() >= count; });
    return all_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Outcome> all_;
};

/// Runs a function on the engine thread.
class Call : public Command {
 public:
  explicit Call(std::function<void(const Execution&)> body) : body_(std::move(body)) {}
  const char* name() const override { return "call"; }
  void run(const Execution& execution) override { body_(execution); }

 private:
  std::function<void(const Execution&)> body_;
};

inline std::shared_ptr<Command> call(std::function<void(const Execution&)> body) {
  return std::make_shared<Call>(std::move(body));
}

/// A command that holds its stream until the gate opens or the work is cancelled.
class Gate {
 public:
  std::shared_ptr<Command> command() {
    return call([this](const Execution& execution) {
      entered_.store(true);
      while (!open_.load() && !execution.cancelled->load()) std::this_thread::yield();
    });
  }
  void open() { open_.store(true); }
  void wait_entered() const {
    while (!entered_.load()) std::this_thread::yield();
  }

 private:
  std::atomic<bool> open_{false}, entered_{false};
};

inline std::shared_ptr<Stream> open_stream(int threads = 2) {
  return std::make_shared<Stream>(Device::open("cpu"), threads);
}

/// How a piece of work ended. A stream that failed before it was asked throws, one that fails afterwards completes: which of
/// the two happens is up to the engine thread, and the same here.
template <class Start>
Outcome outcome_of(Start start) {
  Outcomes outcomes;
  try {
    start(outcomes.completion());
  } catch (const Error& error) {
    return {error, false, {}};
  }
  return outcomes.wait(1).at(0);
}

inline Outcome sync(Stream& stream) {
  return outcome_of([&](Completion done) { stream.sync(std::move(done)); });
}

inline Outcome read(Stream& stream, const Tensor& tensor) {
  return outcome_of([&](Completion done) { stream.read(tensor, std::move(done)); });
}

/// A tensor in a buffer of its own.
inline Tensor make_tensor(DType dtype, std::vector<int64_t> shape) {
  Tensor tensor{nullptr, 0, dtype, std::move(shape)};
  tensor.buffer = std::make_shared<Buffer>(Device::open("cpu"), tensor.bytes());
  return tensor;
}

inline Tensor make_tensor(std::vector<int64_t> shape, const std::vector<float>& values) {
  Tensor tensor = make_tensor(DType::f32, std::move(shape));
  std::memcpy(tensor.as<float>(), values.data(), values.size() * sizeof(float));
  return tensor;
}

inline const Op& op_named(const std::string& name) {
  for (const Op& op : op_table()) {
    if (name == op.name) return op;
  }
  throw std::logic_error("no op " + name);
}

/// The words of a StepInput for a step.
inline std::vector<int32_t> pack_step(const Step& step, const std::vector<int32_t>& lists = {}) {
  std::vector<int32_t> words = {kStepMagic,
                                step.tokens,
                                step.sequence_count,
                                step.row_count,
                                step.pages_per_sequence,
                                step.sampling != nullptr,
                                int32_t(lists.size()),
                                0};
  auto append = [&](const void* data, size_t count) {
    const auto* from = static_cast<const int32_t*>(data);
    words.insert(words.end(), from, from + count);
  };
  append(step.ids, size_t(step.tokens));
  append(step.sequence_of, size_t(step.tokens));
  append(step.sequences, size_t(step.sequence_count) * sizeof(Sequence) / 4);
  append(step.pages, size_t(step.sequence_count) * size_t(step.pages_per_sequence));
  append(step.rows, size_t(step.row_count) * sizeof(LogitsRow) / 4);
  if (step.sampling) append(step.sampling, size_t(step.row_count) * sizeof(Sampling) / 4);
  append(lists.data(), lists.size());
  return words;
}

inline std::shared_ptr<const StepInput> make_input(const std::vector<int32_t>& words) {
  return std::make_shared<StepInput>(reinterpret_cast<const uint8_t*>(words.data()), words.size() * 4);
}

/// A step of one sequence in slot 0 with these tokens; logits of the last one are wanted.
inline std::shared_ptr<const StepInput> make_input_of(const std::vector<int32_t>& ids) {
  Batch batch(1);
  batch.add(0, 0, int32_t(ids.size()));
  batch.ids = ids;
  batch.rows.push_back({int32_t(ids.size()) - 1, 0});
  return make_input(pack_step(batch.step()));
}

/// A file that is removed when the test ends.
class TemporaryFile {
 public:
  explicit TemporaryFile(const std::string& content) {
    std::string pattern = std::filesystem::temp_directory_path() / "nibblet-test-XXXXXX";
    int file = mkstemp(pattern.data());
    path_ = pattern;
    if (file >= 0) close(file);
    std::ofstream(path_, std::ios::binary) << content;
  }
  ~TemporaryFile() { std::filesystem::remove(path_); }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

template <class T>
std::string bytes_of(const std::vector<T>& values) {
  return std::string(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
}

}  // namespace nibblet::test
