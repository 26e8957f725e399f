#include "native/runtime/ops.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace nibblet {
namespace {

using enum AttributeType;

OperandSpec in(const char* name, std::vector<DType> dtypes, int rank) {
  return {name, OperandKind::tensor, false, std::move(dtypes), rank};
}
OperandSpec maybe(const char* name, std::vector<DType> dtypes, int rank) {
  return {name, OperandKind::tensor, true, std::move(dtypes), rank};
}
OperandSpec weight(const char* name) { return {name, OperandKind::weight, false, {}, -1}; }
OperandSpec maybe_weight(const char* name) { return {name, OperandKind::weight, true, {}, -1}; }

const std::vector<DType> kF32 = {DType::f32};
const std::vector<DType> kI32 = {DType::i32};
const std::vector<DType> kU8 = {DType::u8};
const std::vector<DType> kActivation = {DType::f32, DType::bf16};
const std::vector<DType> kCache = {DType::f32, DType::bf16, DType::e4m3};

std::vector<Op> make_table() {
  return {
      {"embed", {maybe("slots", kI32, 2), in("table", kActivation, 2), in("y", kF32, 2)}, {}, bind_embed},
      {"linear",
       {in("x", kActivation, 2), weight("weight"), maybe("norm", kF32, 1), maybe("bias", kF32, 1),
        in("y", kActivation, 2)},
       {{"epsilon", number},
        {"exact", boolean},
        {"add", boolean},
        {"relu2", boolean},
        {"rows", boolean},
        {"quantizeInput", boolean}},
       bind_linear},
      {"mamba",
       {maybe("slots", kI32, 2), in("projected", kActivation, 2), in("convWeight", kF32, 2),
        maybe("convBias", kF32, 1), in("dtBias", kF32, 1), in("aLog", kF32, 1), in("d", kF32, 1),
        in("norm", kF32, 1), in("convState", kActivation, 3), in("ssmState", kF32, 4),
        in("y", kActivation, 2)},
       {{"groups", integer}, {"epsilon", number}, {"exact", boolean}},
       bind_mamba},
      {"attention",
       {maybe("slots", kI32, 2), in("qkv", kActivation, 2), in("cache", kCache, 5), in("y", kActivation, 2)},
       {{"heads", integer}, {"kScale", number}, {"vScale", number}, {"exact", boolean}},
       bind_attention},
      {"moe",
       {in("x", kF32, 2), in("norm", kF32, 1), in("router", kF32, 2), in("bias", kF32, 1), weight("up"),
        weight("down"), maybe_weight("sharedUp"), maybe_weight("sharedDown"), maybe("upBias", kF32, 2),
        maybe("downBias", kF32, 2), maybe("sharedUpBias", kF32, 1), maybe("sharedDownBias", kF32, 1),
        maybe("statistics", {DType::u32}, 1)},
       {{"epsilon", number},
        {"exact", boolean},
        {"topK", integer},
        {"groups", integer},
        {"topkGroups", integer},
        {"normalize", boolean},
        {"scale", number}},
       bind_moe},
      {"sample",
       {in("slots", kI32, 2), in("logits", kF32, 2), in("seen", kU8, 2), in("counts", {DType::u32}, 2),
        in("results", kU8, 2)},
       {},
       bind_sample},
      {"quantize",
       {in("w", kActivation, 2), in("codes", kU8, 2), in("blockScales", {DType::e4m3}, 2),
        in("global", kF32, 1)},
       {},
       bind_quantize},
  };
}

// With this, sizes in bytes and the products that binds make of extents fit 64 bits.
constexpr int64_t kMostElements = int64_t{1} << 44;

void check_tensor(const OpCall& call, const OperandSpec& spec, const Tensor& tensor) {
  std::string name = std::string("`") + spec.name + "`";
  if (std::find(spec.dtypes.begin(), spec.dtypes.end(), tensor.dtype) == spec.dtypes.end()) {
    std::string accepted;
    for (DType type : spec.dtypes)
      accepted += (accepted.empty() ? "" : " or ") + std::string(dtype_name(type));
    call.fail("expected " + accepted + " for " + name + ", got " + describe(tensor));
  }
  if (spec.rank >= 0 && static_cast<int>(tensor.shape.size()) != spec.rank) {
    call.fail("expected " + std::to_string(spec.rank) + " dimensions for " + name + ", got " +
              describe(tensor));
  }
  int64_t elements = 1;
  for (int64_t extent : tensor.shape) {
    if (extent < 1 || extent > INT32_MAX || elements > kMostElements / extent) {
      call.fail(name + " has an impossible shape, " + describe(tensor));
    }
    elements *= extent;
  }
  if (tensor.offset > tensor.buffer->bytes() || tensor.bytes() > tensor.buffer->bytes() - tensor.offset) {
    call.fail(name + " reaches beyond its buffer of " + std::to_string(tensor.buffer->bytes()) + " bytes");
  }
  if (tensor.offset % dtype_bytes(tensor.dtype) != 0) call.fail(name + " is not aligned to its dtype");
  if (tensor.buffer->device() != call.stream->device()) call.fail(name + " is on another device");
}

template <class Spec>
size_t index_of(const std::vector<Spec>& specs, const char* name) {
  for (size_t i = 0; i < specs.size(); ++i) {
    if (std::strcmp(specs[i].name, name) == 0) return i;
  }
  throw std::logic_error(std::string("the op table has no ") + name);
}

}  // namespace

const std::vector<Op>& op_table() {
  static const auto* table = new std::vector<Op>(make_table());
  return *table;
}

const Tensor& OpCall::tensor(const char* name) const {
  static const auto* none = new Tensor;
  const Operand& operand = operands[index_of(op->operands, name)];
  return std::holds_alternative<Tensor>(operand) ? std::get<Tensor>(operand) : *none;
}

Weight* OpCall::weight(const char* name) const {
  const Operand& operand = operands[index_of(op->operands, name)];
  auto* weight = std::get_if<std::shared_ptr<Weight>>(&operand);
  return weight ? weight->get() : nullptr;
}

double OpCall::number(const char* name) const { return attributes[index_of(op->attributes, name)]; }
int32_t OpCall::integer(const char* name) const { return static_cast<int32_t>(number(name)); }

void OpCall::fail(const std::string& what) const { throw invalid(std::string(op->name) + ": " + what); }

void OpCall::expect_shape(const char* name, const std::vector<int64_t>& shape) const {
  const Tensor& given = tensor(name);
  if (!given) return;
  bool same = given.shape.size() == shape.size();
  std::string wanted;
  for (size_t i = 0; i < shape.size(); ++i) {
    same = same && (shape[i] == -1 || given.shape[i] == shape[i]);
    wanted += (i ? ", " : "") + (shape[i] == -1 ? std::string("any") : std::to_string(shape[i]));
  }
  if (!same) fail("expected shape [" + wanted + "] for `" + name + "`, got " + describe(given));
}

void enqueue_op(OpCall call) {
  const Op& op = *call.op;
  if (call.operands.size() != op.operands.size() || call.attributes.size() != op.attributes.size()) {
    call.fail("expected " + std::to_string(op.operands.size()) + " operands and " +
              std::to_string(op.attributes.size()) + " attributes");
  }
  for (size_t i = 0; i < op.operands.size(); ++i) {
    const OperandSpec& spec = op.operands[i];
    const Operand& operand = call.operands[i];
    bool absent = std::holds_alternative<std::monostate>(operand);
    if (absent && !spec.optional) call.fail(std::string("`") + spec.name + "` is missing");
    if (absent) continue;
    if (std::holds_alternative<Tensor>(operand) != (spec.kind == OperandKind::tensor)) {
      call.fail(std::string("`") + spec.name + "` must be a " +
                (spec.kind == OperandKind::tensor ? "tensor" : "weight"));
    }
    if (spec.kind == OperandKind::tensor) {
      check_tensor(call, spec, std::get<Tensor>(operand));
    } else {
      const auto& weight = std::get<std::shared_ptr<Weight>>(operand);
      if (weight->buffer()->device() != call.stream->device())
        call.fail(std::string("`") + spec.name + "` is on another device");
    }
  }
  for (size_t i = 0; i < op.attributes.size(); ++i) {
    double value = call.attributes[i];
    bool good = std::isfinite(value);
    if (op.attributes[i].type == integer)
      good = good && value == std::floor(value) && std::abs(value) < (1 << 30);
    if (!good) call.fail(std::string("`") + op.attributes[i].name + "` is not a valid number");
  }
  call.stream->enqueue(op.bind(call));
}

void OpCommand::check_slots(const Step& step, int64_t slots, bool has_states) const {
  for (int32_t s = 0; s < step.sequence_count; ++s) {
    if (step.sequences[s].slot >= slots)
      fail("slot " + std::to_string(step.sequences[s].slot) + " does not exist");
    if ((step.sequences[s].flags & kDecode) && !has_states) fail("a decode row needs `slots`");
  }
}

void OpCommand::check_tokens(const Step& step, int64_t capacity) const {
  if (step.tokens > capacity) {
    fail("the step has " + std::to_string(step.tokens) + " tokens, the graph was captured for " +
         std::to_string(capacity));
  }
}

}  // namespace nibblet
