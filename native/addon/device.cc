#include "native/addon/handles.h"
#include "native/runtime/pool.h"

namespace nibblet {

void export_device(Napi::Env env, Napi::Object exports) {
  export_function(env, exports, "openDevice", [](const Napi::CallbackInfo& info) -> Napi::Value {
    return wrap(info.Env(), Device::open(text(info[0], "device")));
  });
  export_function(env, exports, "deviceMemory", [](const Napi::CallbackInfo& info) -> Napi::Value {
    Napi::Object memory = Napi::Object::New(info.Env());
    memory.Set("allocated", static_cast<double>(unwrap<Device>(info[0])->allocated_bytes()));
    memory.Set("available", static_cast<double>(available_memory()));
    return memory;
  });
  export_function(env, exports, "physicalCores", [](const Napi::CallbackInfo& info) -> Napi::Value {
    return Napi::Number::New(info.Env(), physical_cores());
  });
}

}  // namespace nibblet
