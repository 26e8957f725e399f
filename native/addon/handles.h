#pragma once

#include <napi.h>

#include <memory>
#include <string>

#include "native/addon/env.h"
#include "native/runtime/load.h"
#include "native/runtime/mapped_file.h"
#include "native/runtime/ops.h"

namespace nibblet {

/// What tells handles apart, so that a wrong one is an error and not a crash, and the word for it in messages.
struct HandleKind {
  napi_type_tag tag;
  const char* noun;
};
constexpr HandleKind handle_kind(uint64_t number, const char* noun) {
  return {{0x6e6962626c657400, number}, noun};
}

template <class T>
inline constexpr HandleKind kHandle = {};
template <>
inline constexpr HandleKind kHandle<Device> = handle_kind(1, "device");
template <>
inline constexpr HandleKind kHandle<Buffer> = handle_kind(2, "buffer");
template <>
inline constexpr HandleKind kHandle<Weight> = handle_kind(3, "weight");
template <>
inline constexpr HandleKind kHandle<Stream> = handle_kind(4, "stream");
template <>
inline constexpr HandleKind kHandle<Graph> = handle_kind(5, "graph");
template <>
inline constexpr HandleKind kHandle<ByteSource> = handle_kind(6, "file");
template <>
inline constexpr HandleKind kHandle<std::atomic<bool>> = handle_kind(7, "cancel flag");

/// An opaque JavaScript object that owns a reference to a runtime object. `dispose` empties it; the object itself goes when
/// nothing enqueued uses it any more.
template <class T>
Napi::Object wrap(Napi::Env env, std::shared_ptr<T> object) {
  static_assert(kHandle<T>.noun != nullptr, "this type has no handle");
  Napi::Object handle = Napi::Object::New(env);
  auto* owned = new std::shared_ptr<T>(std::move(object));
  napi_status status = napi_wrap(
      env, handle, owned, [](napi_env, void* data, void*) { delete static_cast<std::shared_ptr<T>*>(data); },
      nullptr, nullptr);
  if (status != napi_ok) {
    delete owned;
    throw Napi::Error::New(env);
  }
  handle.TypeTag(&kHandle<T>.tag);
  return handle;
}

template <class T>
std::shared_ptr<T>& slot_of(const Napi::Value& value) {
  void* data = nullptr;
  if (!value.IsObject() || !value.As<Napi::Object>().CheckTypeTag(&kHandle<T>.tag) ||
      napi_unwrap(value.Env(), value, &data) != napi_ok) {
    throw invalid(std::string("expected a ") + kHandle<T>.noun);
  }
  return *static_cast<std::shared_ptr<T>*>(data);
}

/// The runtime object of a handle. Throws DISPOSED when it was disposed of.
template <class T>
std::shared_ptr<T> unwrap(const Napi::Value& value) {
  std::shared_ptr<T>& slot = slot_of<T>(value);
  if (!slot)
    throw Error("DISPOSED", std::string("the ") + kHandle<T>.noun + " was disposed of; create another");
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
