#pragma once

#include <napi.h>

#include <memory>
#include <string>

#include "native/addon/env.h"
#include "native/runtime/load.h"
#include "native/runtime/ops.h"

namespace nibblet {

/// Tags that tell handles apart, so that a wrong one is an error and not a crash.
template <class T>
struct HandleTag;
template <>
struct HandleTag<Device> {
  static constexpr napi_type_tag tag{0x6e6962626c657400, 1};
  static constexpr const char* noun = "device";
};
template <>
struct HandleTag<Buffer> {
  static constexpr napi_type_tag tag{0x6e6962626c657400, 2};
  static constexpr const char* noun = "buffer";
};
template <>
struct HandleTag<Weight> {
  static constexpr napi_type_tag tag{0x6e6962626c657400, 3};
  static constexpr const char* noun = "weight";
};
template <>
struct HandleTag<Stream> {
  static constexpr napi_type_tag tag{0x6e6962626c657400, 4};
  static constexpr const char* noun = "stream";
};
template <>
struct HandleTag<Graph> {
  static constexpr napi_type_tag tag{0x6e6962626c657400, 5};
  static constexpr const char* noun = "graph";
};
template <>
struct HandleTag<ByteSource> {
  static constexpr napi_type_tag tag{0x6e6962626c657400, 6};
  static constexpr const char* noun = "file";
};
template <>
struct HandleTag<std::atomic<bool>> {
  static constexpr napi_type_tag tag{0x6e6962626c657400, 7};
  static constexpr const char* noun = "cancel flag";
};

/// An opaque JavaScript object that owns a reference to a runtime object. `dispose` empties it; the object itself goes when
/// nothing enqueued uses it any more.
template <class T>
Napi::Object wrap(Napi::Env env, std::shared_ptr<T> object) {
  Napi::Object handle = Napi::Object::New(env);
  auto* owned = new std::shared_ptr<T>(std::move(object));
  napi_status status = napi_wrap(
      env, handle, owned, [](napi_env, void* data, void*) { delete static_cast<std::shared_ptr<T>*>(data); },
      nullptr, nullptr);
  if (status != napi_ok) {
    delete owned;
    throw Napi::Error::New(env);
  }
  handle.TypeTag(&HandleTag<T>::tag);
  return handle;
}

template <class T>
std::shared_ptr<T>& slot_of(const Napi::Value& value) {
  void* data = nullptr;
  if (!value.IsObject() || !value.As<Napi::Object>().CheckTypeTag(&HandleTag<T>::tag) ||
      napi_unwrap(value.Env(), value, &data) != napi_ok) {
    throw invalid(std::string("expected a ") + HandleTag<T>::noun);
  }
  return *static_cast<std::shared_ptr<T>*>(data);
}

/// The runtime object of a handle. Throws DISPOSED when it was disposed of.
template <class T>
std::shared_ptr<T> unwrap(const Napi::Value& value) {
  std::shared_ptr<T>& slot = slot_of<T>(value);
  if (!slot)
    throw Error("DISPOSED", std::string("the ") + HandleTag<T>::noun + " was disposed of; create another");
  return slot;
}

double number(const Napi::Value& value, const char* name);
int32_t integer(const Napi::Value& value, const char* name);
size_t size(const Napi::Value& value, const char* name);
std::string text(const Napi::Value& value, const char* name);
std::pair<const uint8_t*, size_t> bytes(const Napi::Value& value, const char* name);
DType dtype(const Napi::Value& value);
/// `[buffer, offset, dtype, ...shape]`
Tensor tensor(const Napi::Value& value);

/// Applies NIBBLET_CPU. Throws INVALID_OPTION for a variant that is unknown or that this machine cannot run.
void choose_cpu_variant();

void export_device(Napi::Env env, Napi::Object exports);
void export_memory(Napi::Env env, Napi::Object exports);
void export_stream(Napi::Env env, Napi::Object exports);

/// Adds a function whose runtime errors become JavaScript exceptions.
template <class Body>
void export_function(Napi::Env env, Napi::Object exports, const char* name, Body body) {
  exports.Set(name, Napi::Function::New(
                        env,
                        [body](const Napi::CallbackInfo& info) {
                          return guarded(info.Env(), [&] { return body(info); });
                        },
                        name));
}

}  // namespace nibblet
