// Streams, graphs and the op table.
#include <algorithm>
#include <cstring>

#include "native/addon/handles.h"
#include "native/runtime/roofline.h"
#include "native/runtime/write.h"

namespace nibblet {
namespace {

Napi::Value nothing(Napi::Env env, Outcome&) { return env.Undefined(); }

/// The bytes of a result, or null when the work was cancelled.
Napi::Value result(Napi::Env env, Outcome& outcome) {
  if (outcome.cancelled) return env.Null();
  Napi::Uint8Array array = Napi::Uint8Array::New(env, outcome.bytes.size());
  if (!outcome.bytes.empty()) std::memcpy(array.Data(), outcome.bytes.data(), outcome.bytes.size());
  return array;
}

std::shared_ptr<const StepInput> step_input(const Napi::Value& value) {
  auto [data, length] = bytes(value, "input");
  return std::make_shared<StepInput>(data, length);
}

Napi::Value describe_ops(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  Napi::Array table = Napi::Array::New(env);
  for (const Op& op : op_table()) {
    Napi::Object row = Napi::Object::New(env);
    Napi::Array operands = Napi::Array::New(env), attributes = Napi::Array::New(env);
    for (const OperandSpec& spec : op.operands) {
      Napi::Object operand = Napi::Object::New(env);
      operand.Set("name", spec.name);
      operand.Set("kind", spec.kind == OperandKind::tensor ? "tensor" : "weight");
      operand.Set("optional", spec.optional);
      operands.Set(operands.Length(), operand);
    }
    for (const AttributeSpec& spec : op.attributes)
      attributes.Set(attributes.Length(), Napi::String::New(env, spec.name));
    row.Set("name", op.name);
    row.Set("operands", operands);
    row.Set("attributes", attributes);
    table.Set(table.Length(), row);
  }
  return table;
}

Napi::Value enqueue(const Napi::CallbackInfo& info) {
  OpCall call;
  std::shared_ptr<Stream> stream = unwrap<Stream>(info[0]);
  size_t index = size(info[1], "op");
  if (index >= op_table().size()) throw invalid("there is no op " + std::to_string(index));
  if (!info[2].IsArray() || !info[3].IsArray()) throw invalid("expected operands and attributes");
  call.op = &op_table()[index];
  call.stream = stream.get();
  Napi::Array operands = info[2].As<Napi::Array>(), attributes = info[3].As<Napi::Array>();
  for (uint32_t i = 0; i < operands.Length(); ++i) {
    Napi::Value operand = operands.Get(i);
    if (operand.IsUndefined()) {
      call.operands.emplace_back();
    } else if (operand.IsArray()) {
      call.operands.emplace_back(tensor(operand));
    } else {
      call.operands.emplace_back(unwrap<Weight>(operand));
    }
  }
  for (uint32_t i = 0; i < attributes.Length(); ++i)
    call.attributes.push_back(number(attributes.Get(i), "attribute"));
  enqueue_op(std::move(call));
  return info.Env().Undefined();
}

Napi::Value write(const Napi::CallbackInfo& info) {
  Tensor to = tensor(info[1]);
  auto [data, length] = bytes(info[2], "data");
  if (length != to.bytes()) {
    throw invalid("expected " + std::to_string(to.bytes()) + " bytes for " + describe(to) + ", got " +
                  std::to_string(length));
  }
  std::shared_ptr<Stream> stream = unwrap<Stream>(info[0]);
  stream->require(*to.buffer, "the tensor to write");
  stream->enqueue(write_tensor(to, std::vector<uint8_t>(data, data + length)));
  return info.Env().Undefined();
}

Napi::Value create_stream(const Napi::CallbackInfo& info) {
  auto stream = std::make_shared<Stream>(unwrap<Device>(info[0]), integer(info[1], "threads"));
  EnvState::of(info.Env()).streams.insert(stream);
  return wrap(info.Env(), std::move(stream));
}

Napi::Value close_stream(const Napi::CallbackInfo& info) {
  if (std::shared_ptr<Stream> stream = std::exchange(slot_of<Stream>(info[0]), nullptr)) {
    stream->close();
    EnvState::of(info.Env()).streams.erase(stream);
  }
  return info.Env().Undefined();
}

Napi::Value launch(const Napi::CallbackInfo& info) {
  std::shared_ptr<Stream> stream = unwrap<Stream>(info[0]);
  std::shared_ptr<Graph> graph = unwrap<Graph>(info[1]);
  std::shared_ptr<const StepInput> input = step_input(info[2]);
  CancelFlag cancel = info[3].IsUndefined() ? nullptr : unwrap<std::atomic<bool>>(info[3]);
  return EnvState::of(info.Env()).channel->expect(info.Env(), result, [&](Completion done) {
    stream->launch(std::move(graph), std::move(input), std::move(cancel), std::move(done));
  });
}

Napi::Value sync(const Napi::CallbackInfo& info) {
  std::shared_ptr<Stream> stream = unwrap<Stream>(info[0]);
  return EnvState::of(info.Env()).channel->expect(info.Env(), nothing, [&](Completion done) {
    stream->sync(std::move(done));
  });
}

Napi::Value read(const Napi::CallbackInfo& info) {
  std::shared_ptr<Stream> stream = unwrap<Stream>(info[0]);
  Tensor from = tensor(info[1]);
  return EnvState::of(info.Env()).channel->expect(info.Env(), result, [&](Completion done) {
    stream->read(std::move(from), std::move(done));
  });
}

Napi::Value end_capture(const Napi::CallbackInfo& info) {
  Tensor reported = info[1].IsUndefined() ? Tensor{} : tensor(info[1]);
  return wrap(info.Env(), unwrap<Stream>(info[0])->end_capture(std::move(reported), info[2].ToBoolean()));
}

}  // namespace

void export_stream(Napi::Env env, Napi::Object exports) {
  export_function(env, exports, "opTable", describe_ops);
  export_function(env, exports, "createStream", create_stream);
  export_function(env, exports, "closeStream", close_stream);
  export_function(env, exports, "enqueue", enqueue);
  export_function(env, exports, "write", write);
  export_function(env, exports, "measureRead", [](const Napi::CallbackInfo& info) -> Napi::Value {
    std::shared_ptr<Stream> stream = unwrap<Stream>(info[0]);
    Tensor source = tensor(info[1]), seconds = tensor(info[2]);
    for (const Tensor* used : {&source, &seconds}) stream->require(*used->buffer, "the memory to measure");
    stream->enqueue(measure_read(source, seconds, integer(info[3], "times")));
    return info.Env().Undefined();
  });
  export_function(env, exports, "read", read);
  export_function(env, exports, "sync", sync);
  export_function(env, exports, "launch", launch);
  export_function(env, exports, "step", [](const Napi::CallbackInfo& info) -> Napi::Value {
    unwrap<Stream>(info[0])->step(step_input(info[1]));
    return info.Env().Undefined();
  });
  export_function(env, exports, "beginCapture", [](const Napi::CallbackInfo& info) -> Napi::Value {
    unwrap<Stream>(info[0])->begin_capture();
    return info.Env().Undefined();
  });
  export_function(env, exports, "endCapture", end_capture);
  export_function(env, exports, "abandonCapture", [](const Napi::CallbackInfo& info) -> Napi::Value {
    unwrap<Stream>(info[0])->abandon_capture();
    return info.Env().Undefined();
  });
  export_function(env, exports, "disposeGraph", [](const Napi::CallbackInfo& info) -> Napi::Value {
    slot_of<Graph>(info[0]).reset();
    return info.Env().Undefined();
  });
  export_function(env, exports, "graphKernels", [](const Napi::CallbackInfo& info) -> Napi::Value {
    return Napi::Number::New(info.Env(), unwrap<Graph>(info[0])->kernels.load());
  });
  export_function(env, exports, "timeGaps", [](const Napi::CallbackInfo& info) -> Napi::Value {
    const std::vector<float> gaps = unwrap<Stream>(info[0])->time_gaps(info[1].ToBoolean());
    Napi::Float32Array array = Napi::Float32Array::New(info.Env(), gaps.size());
    std::copy(gaps.begin(), gaps.end(), array.Data());
    return array;
  });
  export_function(env, exports, "createCancelFlag", [](const Napi::CallbackInfo& info) -> Napi::Value {
    return wrap(info.Env(), std::make_shared<std::atomic<bool>>(false));
  });
  export_function(env, exports, "cancel", [](const Napi::CallbackInfo& info) -> Napi::Value {
    unwrap<std::atomic<bool>>(info[0])->store(true);
    return info.Env().Undefined();
  });
}

}  // namespace nibblet
