#pragma once

#include <napi.h>

#include <functional>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <unordered_set>

#include "native/runtime/stream.h"

namespace nibblet {

/// Turns what a piece of work left behind into the value its promise resolves with. Runs on the JavaScript thread.
using Convert = Napi::Value (*)(Napi::Env env, Outcome& outcome);

/// The way from engine threads back to one Node environment: one thread-safe function, held only while work is pending so that
/// an idle runtime lets the process exit. Outlives its environment in completions that arrive late; those are dropped.
class Channel : public std::enable_shared_from_this<Channel> {
 public:
  explicit Channel(Napi::Env env);
  /// Gives `start` a completion and returns the promise that it settles. When `start` throws, nothing is expected and the
  /// exception passes. JavaScript thread only.
  Napi::Promise expect(Napi::Env env, Convert convert, const std::function<void(Completion)>& start);
  void close();

 private:
  struct Pending {
    Napi::Promise::Deferred deferred;
    Convert convert;
  };
  struct Event {
    std::shared_ptr<Channel> channel;
    uint64_t id;
    Outcome outcome;
  };
  static void deliver(Napi::Env env, Napi::Function, void*, Event* event);
  void post(uint64_t id, Outcome outcome);
  void settle(Napi::Env env, uint64_t id, Outcome& outcome);

  using Function = Napi::TypedThreadSafeFunction<void, Event, &Channel::deliver>;
  std::mutex mutex_;
  bool open_ = true;
  Function function_;
  uint64_t next_ = 1;
  std::unordered_map<uint64_t, Pending> pending_;
};

/// State of one Node environment (main thread or worker).
struct EnvState {
  explicit EnvState(Napi::Env env) : channel(std::make_shared<Channel>(env)) {}
  static EnvState& of(Napi::Env env) { return *env.GetInstanceData<EnvState>(); }
  /// Closes the streams of this environment alone.
  void shut_down();

  std::shared_ptr<Channel> channel;
  std::unordered_set<std::shared_ptr<Stream>> streams;
  Napi::FunctionReference make_error;
};

/// The JavaScript error for a runtime error, made by the factory that lib/core passed to `initialize`.
Napi::Error to_js(Napi::Env env, const Error& error);

/// Runs `body`, turning runtime errors into JavaScript exceptions.
template <class Body>
Napi::Value guarded(Napi::Env env, Body body) {
  try {
    return body();
  } catch (const Error& error) {
    throw to_js(env, error);
  } catch (const Napi::Error&) {
    throw;
  } catch (const std::exception& error) {
    throw to_js(env, Error("STREAM_FAILED", error.what()));
  }
}

}  // namespace nibblet
