#include "native/addon/env.h"

#include <utility>
#include <vector>

namespace nibblet {

Channel::Channel(Napi::Env env) : function_(Function::New(env, "nibblet", 0, 1)) { function_.Unref(env); }

Napi::Promise Channel::expect(Napi::Env env, Convert convert, const std::function<void(Completion)>& start) {
  uint64_t id = next_++;
  start([channel = shared_from_this(), id](Outcome outcome) { channel->post(id, std::move(outcome)); });
  // A completion that is already posted is delivered on this thread, so not before it is expected here.
  auto [entry, _] = pending_.emplace(id, Pending{Napi::Promise::Deferred::New(env), convert});
  if (pending_.size() == 1) function_.Ref(env);
  return entry->second.deferred.Promise();
}

void Channel::post(uint64_t id, Outcome outcome) {
  std::lock_guard lock(mutex_);
  if (!open_) return;
  auto* event = new Event{shared_from_this(), id, std::move(outcome)};
  if (function_.NonBlockingCall(event) != napi_ok) delete event;
}

void Channel::deliver(Napi::Env env, Napi::Function, void*, Event* event) {
  std::unique_ptr<Event> owned(event);
  // Node passes a null environment to events that are left when it tears down.
  if (env != nullptr) owned->channel->settle(env, owned->id, owned->outcome);
}

void Channel::settle(Napi::Env env, uint64_t id, Outcome& outcome) {
  Napi::HandleScope scope(env);
  auto entry = pending_.extract(id);
  if (entry.empty()) return;
  if (pending_.empty()) function_.Unref(env);
  Pending& pending = entry.mapped();
  if (outcome.error) {
    pending.deferred.Reject(to_js(env, *outcome.error).Value());
  } else {
    pending.deferred.Resolve(pending.convert(env, outcome));
  }
}

void Channel::close() {
  std::lock_guard lock(mutex_);
  if (!open_) return;
  open_ = false;
  pending_.clear();
  function_.Abort();
}

void EnvState::shut_down() {
  for (const auto& stream : std::exchange(streams, {})) stream->close();
  channel->close();
}

Napi::Error to_js(Napi::Env env, const Error& error) {
  EnvState& state = EnvState::of(env);
  if (state.make_error.IsEmpty()) return Napi::Error::New(env, error.what());
  Napi::Value made =
      state.make_error.Call({Napi::String::New(env, error.code()), Napi::String::New(env, error.what()),
                             Napi::String::New(env, error.op())});
  return Napi::Error(env, made);
}

}  // namespace nibblet
