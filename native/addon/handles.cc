#include "native/addon/handles.h"

#include <cmath>

namespace nibblet {

double number(const Napi::Value& value, const char* name) {
  if (!value.IsNumber()) throw invalid(std::string("expected a number for `") + name + "`");
  return value.As<Napi::Number>().DoubleValue();
}

int32_t integer(const Napi::Value& value, const char* name) {
  double given = number(value, name);
  if (given != std::floor(given) || std::abs(given) > INT32_MAX) {
    throw invalid(std::string("expected a 32-bit integer for `") + name + "`, got " + std::to_string(given));
  }
  return static_cast<int32_t>(given);
}

size_t size(const Napi::Value& value, const char* name) {
  double given = number(value, name);
  if (given != std::floor(given) || given < 0 || given > 9007199254740991.0) {
    throw invalid(std::string("expected a size for `") + name + "`, got " + std::to_string(given));
  }
  return static_cast<size_t>(given);
}

std::string text(const Napi::Value& value, const char* name) {
  if (!value.IsString()) throw invalid(std::string("expected a string for `") + name + "`");
  return value.As<Napi::String>().Utf8Value();
}

std::pair<const uint8_t*, size_t> bytes(const Napi::Value& value, const char* name) {
  if (!value.IsTypedArray()) throw invalid(std::string("expected a typed array for `") + name + "`");
  // Not by way of its ArrayBuffer: that may be a SharedArrayBuffer.
  void* data = nullptr;
  napi_status status =
      napi_get_typedarray_info(value.Env(), value, nullptr, nullptr, &data, nullptr, nullptr);
  if (status != napi_ok) throw Napi::Error::New(value.Env());
  return {static_cast<const uint8_t*>(data), value.As<Napi::TypedArray>().ByteLength()};
}

DType dtype(const Napi::Value& value) {
  std::string name = text(value, "dtype");
  for (DType type : {DType::f32, DType::bf16, DType::f16, DType::e4m3, DType::u8, DType::i32, DType::u32}) {
    if (name == dtype_name(type)) return type;
  }
  throw invalid("unknown dtype '" + name + "'");
}

Tensor tensor(const Napi::Value& value) {
  if (!value.IsArray()) throw invalid("expected a tensor");
  Napi::Array array = value.As<Napi::Array>();
  Tensor result;
  result.buffer = unwrap<Buffer>(array.Get(0u));
  result.offset = size(array.Get(1u), "offset");
  result.dtype = dtype(array.Get(2u));
  for (uint32_t i = 3; i < array.Length(); ++i)
    result.shape.push_back(static_cast<int64_t>(size(array.Get(i), "shape")));
  double bytes = static_cast<double>(dtype_bytes(result.dtype));
  for (int64_t extent : result.shape) {
    if (extent < 1) throw invalid("a tensor has no elements: " + describe(result));
    bytes *= static_cast<double>(extent);
  }
  if (static_cast<double>(result.offset) + bytes > static_cast<double>(result.buffer->bytes())) {
    throw invalid("a tensor " + describe(result) + " reaches beyond its buffer of " +
                  std::to_string(result.buffer->bytes()) + " bytes");
  }
  return result;
}

}  // namespace nibblet
