#include <cstdlib>

#include "kernels/simd/cpu.h"
#include "native/addon/handles.h"
#include "native/runtime/pool.h"

namespace nibblet {

void choose_cpu_variant() {
  const char* name = std::getenv("NIBBLET_CPU");
  if (name == nullptr || *name == 0 || select_cpu_variant(name)) return;
  throw invalid(std::string("NIBBLET_CPU is '") + name +
                "': expected portable, avx2, avx512 or avx512vnni, and one that this processor has; unset it "
                "to take the best");
}

void export_device(Napi::Env env, Napi::Object exports) {
  export_function(env, exports, "openDevice", [](const Napi::CallbackInfo& info) -> Napi::Value {
    return wrap(info.Env(), Device::open(text(info[0], "device")));
  });
  export_function(env, exports, "deviceMemory", [](const Napi::CallbackInfo& info) -> Napi::Value {
    Napi::Object memory = Napi::Object::New(info.Env());
    memory.Set("allocated", static_cast<double>(unwrap<Device>(info[0])->allocated_bytes()));
    memory.Set("available", static_cast<double>(unwrap<Device>(info[0])->available_bytes()));
    return memory;
  });
  export_function(env, exports, "cudaDevices", [](const Napi::CallbackInfo& info) -> Napi::Value {
    return Napi::Number::New(info.Env(), Device::cuda_devices());
  });
  export_function(env, exports, "deviceModel", [](const Napi::CallbackInfo& info) -> Napi::Value {
    return Napi::String::New(info.Env(), unwrap<Device>(info[0])->model());
  });
  export_function(env, exports, "cpuVariant", [](const Napi::CallbackInfo& info) -> Napi::Value {
    return Napi::String::New(info.Env(), cpu_variant());
  });
  export_function(env, exports, "physicalCores", [](const Napi::CallbackInfo& info) -> Napi::Value {
    return Napi::Number::New(info.Env(), physical_cores());
  });
}

}  // namespace nibblet
