#include <napi.h>

#include "native/addon/handles.h"

namespace nibblet {

Napi::Object initialize(Napi::Env env, Napi::Object exports) {
  auto* state = new EnvState(env);
  env.SetInstanceData(state);
  // Before Node takes the environment down: streams must not outlive the thread that reads their results.
  env.AddCleanupHook([](EnvState* given) { given->shut_down(); }, state);

  exports.Set("version", NIBBLET_VERSION);
  export_function(env, exports, "initialize", [](const Napi::CallbackInfo& info) -> Napi::Value {
    if (!info[0].IsFunction()) throw Error("INVALID_OPTION", "expected a function that makes errors");
    EnvState::of(info.Env()).make_error = Napi::Persistent(info[0].As<Napi::Function>());
    choose_cpu_variant();
    return info.Env().Undefined();
  });
  export_device(env, exports);
  export_memory(env, exports);
  export_stream(env, exports);
  return exports;
}

NODE_API_MODULE(nibblet, initialize)

}  // namespace nibblet
