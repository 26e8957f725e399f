#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "test/emulator/include/runtime_api.h"

struct NibbletEmulatedNode {
  std::function<cudaError_t()> run;
};

namespace nibblet::emulated {

/// A capture under way, shared by the streams that joined it.
struct Capture {
  cudaStream_t origin;
  cudaStreamCaptureMode mode;
  std::thread::id thread;
  bool invalid = false;
  std::vector<std::shared_ptr<NibbletEmulatedNode>> nodes;
  /// Streams that were forked off the origin and whose latest work no event brought back to it.
  std::vector<cudaStream_t> unjoined;
};

}  // namespace nibblet::emulated

struct NibbletEmulatedStream {
  unsigned flags;
  std::shared_ptr<nibblet::emulated::Capture> capture;
};

struct NibbletEmulatedEvent {
  unsigned flags;
  bool recorded = false;
  std::chrono::steady_clock::time_point time;
  std::shared_ptr<nibblet::emulated::Capture> capture;  ///< recorded while it ran, on `stream`
  cudaStream_t stream = nullptr;
};

struct NibbletEmulatedGraph {
  std::vector<std::shared_ptr<NibbletEmulatedNode>> nodes;
};

struct NibbletEmulatedGraphExec {
  std::vector<std::shared_ptr<NibbletEmulatedNode>> nodes;
};

namespace nibblet::emulated {

/// The handles that exist. The registry is locked for every call.
template <class T>
class Handles {
 public:
  T* add(std::unique_ptr<T> object) {
    all_.push_back(std::move(object));
    return all_.back().get();
  }
  bool has(const T* handle) const {
    for (const auto& object : all_)
      if (object.get() == handle) return true;
    return false;
  }
  bool remove(const T* handle) {
    return std::erase_if(all_, [&](const auto& object) { return object.get() == handle; }) > 0;
  }
  auto begin() { return all_.begin(); }
  auto end() { return all_.end(); }
  void clear() { all_.clear(); }
  size_t size() const { return all_.size(); }

 private:
  std::vector<std::unique_ptr<T>> all_;
};

Handles<NibbletEmulatedStream>& streams();
Handles<NibbletEmulatedEvent>& events();

}  // namespace nibblet::emulated
