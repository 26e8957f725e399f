#include "test/emulator/capture.h"
#include "test/emulator/internal.h"

namespace nibblet::emulated {

Handles<NibbletEmulatedStream>& streams() {
  static Handles<NibbletEmulatedStream> all;
  return all;
}

Handles<NibbletEmulatedEvent>& events() {
  static Handles<NibbletEmulatedEvent> all;
  return all;
}

cudaError_t check_unsafe_call() {
  std::lock_guard lock(registry());
  for (const auto& stream : streams()) {
    Capture* capture = stream->capture.get();
    if (capture == nullptr || capture->mode == cudaStreamCaptureModeRelaxed) continue;
    if (capture->mode == cudaStreamCaptureModeThreadLocal && capture->thread != std::this_thread::get_id())
      continue;
    capture->invalid = true;
    return cudaErrorStreamCaptureUnsupported;
  }
  return cudaSuccess;
}

/// The legacy stream waits for all streams but those made not to block it.
static cudaError_t check_legacy_stream() {
  for (const auto& stream : streams()) {
    if (stream->capture == nullptr || (stream->flags & cudaStreamNonBlocking) != 0) continue;
    stream->capture->invalid = true;
    return cudaErrorStreamCaptureImplicit;
  }
  return cudaSuccess;
}

cudaError_t enqueue(cudaStream_t stream, std::function<cudaError_t()> operation) {
  {
    std::lock_guard lock(registry());
    if (stream == nullptr) {
      if (cudaError_t error = check_legacy_stream(); error != cudaSuccess) return report(error);
    } else if (!streams().has(stream)) {
      return report(cudaErrorInvalidResourceHandle);
    } else if (Capture* capture = stream->capture.get()) {
      if (capture->invalid) return report(cudaErrorStreamCaptureInvalidated);
      capture->nodes.push_back(std::make_shared<NibbletEmulatedNode>(std::move(operation)));
      if (stream != capture->origin) {
        std::erase(capture->unjoined, stream);
        capture->unjoined.push_back(stream);
      }
      return cudaSuccess;
    }
  }
  if (cudaError_t error = sticky_error(); error != cudaSuccess) return report(error);
  return report(operation());
}

}  // namespace nibblet::emulated

using namespace nibblet::emulated;

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  if (cudaError_t error = injected_error(__func__); error != cudaSuccess) return report(error);
  if (flags > cudaStreamNonBlocking) return report(cudaErrorInvalidValue);
  if (cudaError_t error = sticky_error(); error != cudaSuccess) return report(error);
  std::lock_guard lock(registry());
  *stream = streams().add(std::make_unique<NibbletEmulatedStream>(flags, nullptr));
  return cudaSuccess;
}
cudaError_t cudaStreamCreate(cudaStream_t* stream) {
  return cudaStreamCreateWithFlags(stream, cudaStreamDefault);
}
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int) {
  return cudaStreamCreateWithFlags(stream, flags);
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  std::lock_guard lock(registry());
  return report(streams().remove(stream) ? cudaSuccess : cudaErrorInvalidResourceHandle);
}

/// For the calls that wait, which a capture forbids.
static cudaError_t check_waiting(cudaStream_t stream) {
  {
    std::lock_guard lock(registry());
    if (stream == nullptr) {
      if (cudaError_t error = check_legacy_stream(); error != cudaSuccess) return report(error);
    } else if (!streams().has(stream)) {
      return report(cudaErrorInvalidResourceHandle);
    } else if (stream->capture != nullptr) {
      stream->capture->invalid = true;
      return report(cudaErrorStreamCaptureUnsupported);
    }
  }
  return report(sticky_error());
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  if (cudaError_t error = injected_error(__func__); error != cudaSuccess) return report(error);
  return check_waiting(stream);
}
cudaError_t cudaStreamQuery(cudaStream_t stream) { return check_waiting(stream); }

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* argument) {
  if (cudaError_t error = injected_error(__func__); error != cudaSuccess) return report(error);
  if (function == nullptr) return report(cudaErrorInvalidValue);
  return enqueue(stream, [=] {
    function(argument);
    return cudaSuccess;
  });
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  if (cudaError_t error = injected_error(__func__); error != cudaSuccess) return report(error);
  if (cudaError_t error = sticky_error(); error != cudaSuccess) return report(error);
  std::lock_guard lock(registry());
  auto made = std::make_unique<NibbletEmulatedEvent>();
  made->flags = flags;
  *event = events().add(std::move(made));
  return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, cudaEventDefault); }

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  std::lock_guard lock(registry());
  return report(events().remove(event) ? cudaSuccess : cudaErrorInvalidResourceHandle);
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  if (cudaError_t error = injected_error(__func__); error != cudaSuccess) return report(error);
  std::lock_guard lock(registry());
  if (!events().has(event) || (stream != nullptr && !streams().has(stream)))
    return report(cudaErrorInvalidResourceHandle);
  if (stream != nullptr && stream->capture != nullptr) {
    if (stream->capture->invalid) return report(cudaErrorStreamCaptureInvalidated);
    event->capture = stream->capture;
    event->stream = stream;
    return cudaSuccess;
  }
  event->capture = nullptr;
  event->recorded = true;
  event->time = std::chrono::steady_clock::now();
  return report(sticky_error());
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  if (cudaError_t error = injected_error(__func__); error != cudaSuccess) return report(error);
  std::lock_guard lock(registry());
  if (!events().has(event) || (stream != nullptr && !streams().has(stream)))
    return report(cudaErrorInvalidResourceHandle);
  Capture* own = stream == nullptr ? nullptr : stream->capture.get();
  if (event->capture == nullptr) {
    // Work before the capture cannot be waited for within it.
    if (own == nullptr || !event->recorded) return report(sticky_error());
    own->invalid = true;
    return report(cudaErrorStreamCaptureUnsupported);
  }
  if (stream == nullptr) return report(cudaErrorStreamCaptureImplicit);
  if (own == nullptr) {
    stream->capture = event->capture;
    event->capture->unjoined.push_back(stream);
  } else if (own != event->capture.get()) {
    own->invalid = true;
    return report(cudaErrorStreamCaptureUnsupported);
  } else if (stream == own->origin) {
    std::erase(own->unjoined, event->stream);
  }
  return report(sticky_error());
}

/// @return the error of asking the host about an event, or cudaSuccess
static cudaError_t check_event(cudaEvent_t event) {
  std::lock_guard lock(registry());
  if (!events().has(event)) return cudaErrorInvalidResourceHandle;
  if (event->capture != nullptr) {
    event->capture->invalid = true;
    return cudaErrorCapturedEvent;
  }
  return sticky_error();
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  if (cudaError_t error = injected_error(__func__); error != cudaSuccess) return report(error);
  return report(check_event(event));
}
cudaError_t cudaEventQuery(cudaEvent_t event) { return report(check_event(event)); }

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
  if (cudaError_t error = injected_error(__func__); error != cudaSuccess) return report(error);
  std::lock_guard lock(registry());
  if (!events().has(start) || !events().has(end)) return report(cudaErrorInvalidResourceHandle);
  if (!start->recorded || !end->recorded || ((start->flags | end->flags) & cudaEventDisableTiming) != 0)
    return report(cudaErrorInvalidResourceHandle);
  *milliseconds = std::chrono::duration<float, std::milli>(end->time - start->time).count();
  return report(sticky_error());
}

cudaError_t cudaDeviceReset() {
  // Handles stay valid, so that what owns them can still destroy them.
  set_sticky_error(cudaSuccess);
  cudaGetLastError();
  return cudaSuccess;
}
