#include <algorithm>

#include "test/emulator/capture.h"
#include "test/emulator/control.h"
#include "test/emulator/internal.h"

namespace nibblet::emulated {

static Handles<NibbletEmulatedGraph>& graphs() {
  static Handles<NibbletEmulatedGraph> all;
  return all;
}
static Handles<NibbletEmulatedGraphExec>& execs() {
  static Handles<NibbletEmulatedGraphExec> all;
  return all;
}

size_t live_handles() {
  std::lock_guard lock(registry());
  return streams().size() + events().size() + graphs().size() + execs().size();
}

}  // namespace nibblet::emulated

using namespace nibblet::emulated;

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  if (cudaError_t error = injected_error(__func__); error != cudaSuccess) return report(error);
  if (cudaError_t error = sticky_error(); error != cudaSuccess) return report(error);
  std::lock_guard lock(registry());
  if (stream == nullptr) return report(cudaErrorStreamCaptureUnsupported);
  if (!streams().has(stream)) return report(cudaErrorInvalidResourceHandle);
  if (stream->capture != nullptr) return report(cudaErrorStreamCaptureUnsupported);
  stream->capture = std::make_shared<Capture>();
  stream->capture->origin = stream;
  stream->capture->mode = mode;
  stream->capture->thread = std::this_thread::get_id();
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  *graph = nullptr;
  std::lock_guard lock(registry());
  if (!streams().has(stream)) return report(cudaErrorInvalidResourceHandle);
  const std::shared_ptr<Capture> capture = stream->capture;
  if (capture == nullptr || capture->origin != stream) return report(cudaErrorStreamCaptureUnmatched);
  if (capture->mode != cudaStreamCaptureModeRelaxed && capture->thread != std::this_thread::get_id()) {
    capture->invalid = true;
    return report(cudaErrorStreamCaptureWrongThread);
  }
  for (const auto& other : streams())
    if (other->capture == capture) other->capture = nullptr;
  if (capture->invalid) return report(cudaErrorStreamCaptureInvalidated);
  if (!capture->unjoined.empty()) return report(cudaErrorStreamCaptureUnjoined);
  // The capture is over all the same.
  if (cudaError_t error = injected_error(__func__); error != cudaSuccess) return report(error);
  *graph = graphs().add(std::make_unique<NibbletEmulatedGraph>(capture->nodes));
  return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  std::lock_guard lock(registry());
  *status = cudaStreamCaptureStatusNone;
  if (stream == nullptr) return cudaSuccess;
  if (!streams().has(stream)) return report(cudaErrorInvalidResourceHandle);
  if (stream->capture != nullptr)
    *status = stream->capture->invalid ? cudaStreamCaptureStatusInvalidated : cudaStreamCaptureStatusActive;
  return cudaSuccess;
}

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, size_t* count) {
  std::lock_guard lock(registry());
  if (!graphs().has(graph)) return report(cudaErrorInvalidValue);
  if (nodes == nullptr) {
    *count = graph->nodes.size();
    return cudaSuccess;
  }
  for (size_t i = 0; i < *count; ++i) nodes[i] = i < graph->nodes.size() ? graph->nodes[i].get() : nullptr;
  *count = std::min(*count, graph->nodes.size());
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  if (cudaError_t error = injected_error(__func__); error != cudaSuccess) return report(error);
  if (cudaError_t error = sticky_error(); error != cudaSuccess) return report(error);
  std::lock_guard lock(registry());
  if (!graphs().has(graph)) return report(cudaErrorInvalidValue);
  *exec = execs().add(std::make_unique<NibbletEmulatedGraphExec>(graph->nodes));
  return cudaSuccess;
}

cudaError_t cudaGraphUpload(cudaGraphExec_t exec, cudaStream_t stream) {
  if (cudaError_t error = injected_error(__func__); error != cudaSuccess) return report(error);
  std::lock_guard lock(registry());
  if (!execs().has(exec)) return report(cudaErrorInvalidValue);
  if (stream != nullptr && !streams().has(stream)) return report(cudaErrorInvalidResourceHandle);
  return report(sticky_error());
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  if (cudaError_t error = injected_error(__func__); error != cudaSuccess) return report(error);
  std::vector<std::shared_ptr<NibbletEmulatedNode>> nodes;
  {
    std::lock_guard lock(registry());
    if (!execs().has(exec)) return report(cudaErrorInvalidValue);
    nodes = exec->nodes;
  }
  return enqueue(stream, [nodes = std::move(nodes)] {
    for (const auto& node : nodes)
      if (cudaError_t error = node->run(); error != cudaSuccess) return error;
    return cudaSuccess;
  });
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  std::lock_guard lock(registry());
  return report(execs().remove(exec) ? cudaSuccess : cudaErrorInvalidValue);
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  std::lock_guard lock(registry());
  return report(graphs().remove(graph) ? cudaSuccess : cudaErrorInvalidValue);
}
