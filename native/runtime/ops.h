#pragma once

#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "native/runtime/command.h"
#include "native/runtime/stream.h"
#include "native/runtime/tensor.h"
#include "native/runtime/weight.h"
#if NIBBLET_CUDA
#include <cuda_runtime_api.h>
#endif

namespace nibblet {

enum class OperandKind : uint8_t { tensor, weight };
enum class AttributeType : uint8_t { number, integer, boolean };

struct OperandSpec {
  const char* name;
  OperandKind kind;
  bool optional;
  std::vector<DType> dtypes;  ///< tensors: the ones accepted
  int rank;                   ///< tensors: the rank demanded, or -1
};

struct AttributeSpec {
  const char* name;
  AttributeType type;
};

using Operand = std::variant<std::monostate, Tensor, std::shared_ptr<Weight>>;

/// The arguments of one call, in the order of the op's row.
struct OpCall {
  const struct Op* op;
  Stream* stream;
  std::vector<Operand> operands;
  std::vector<double> attributes;

  const Tensor& tensor(const char* name) const;  ///< empty when optional and absent
  Weight* weight(const char* name) const;        ///< null when optional and absent
  double number(const char* name) const;
  int32_t integer(const char* name) const;
  bool flag(const char* name) const { return number(name) != 0; }

  /// Throws INVALID_OPTION naming the op and the operand unless the tensor is absent or has this shape; -1 matches any extent.
  void expect_shape(const char* name, const std::vector<int64_t>& shape) const;
  [[noreturn]] void fail(const std::string& what) const;
};

/// One row of the op table. Adding an op: its folder in kernels/, this row, a typed wrapper in lib/core/stream.ts,
/// a test and a benchmark row.
struct Op {
  const char* name;
  std::vector<OperandSpec> operands;
  std::vector<AttributeSpec> attributes;
  /// Checks shapes and binds the kernel. Throws INVALID_OPTION.
  std::unique_ptr<Command> (*bind)(const OpCall& call);
};

const std::vector<Op>& op_table();

/// Checks a call against its row, binds it and enqueues it on the stream.
void enqueue_op(OpCall call);

/// A command around kernel arguments; the call's operands stay alive with it.
class OpCommand : public Command {
 public:
  explicit OpCommand(const OpCall& call) : name_(call.op->name), operands_(call.operands) {}
  const char* name() const override { return name_; }

 protected:
  /// An error found while running: what the step asked for cannot be.
  [[noreturn]] void fail(const std::string& what) const {
    throw Error("OP_FAILED", std::string(name_) + ": " + what, name_);
  }
  const Step& step_of(const Step* step) const {
    if (!step) fail("no step was set; launch a graph or call stream.step first");
    return *step;
  }
  /// Every slot of the step is below `slots`, and decode rows have slot states to read.
  void check_slots(const Step& step, int64_t slots, bool has_states) const;
  void check_tokens(const Step& step, int64_t capacity) const;
#if NIBBLET_CUDA
  /// Throws OP_FAILED unless the kernels could be launched.
  void check_launch(cudaError_t error) const {
    if (error != cudaSuccess)
      fail(std::string("a kernel could not be launched: ") + cudaGetErrorString(error));
  }
#endif

 private:
  const char* name_;
  std::vector<Operand> operands_;
};

std::unique_ptr<Command> bind_embed(const OpCall& call);
std::unique_ptr<Command> bind_linear(const OpCall& call);
std::unique_ptr<Command> bind_mamba(const OpCall& call);
std::unique_ptr<Command> bind_attention(const OpCall& call);
std::unique_ptr<Command> bind_moe(const OpCall& call);
std::unique_ptr<Command> bind_sample(const OpCall& call);
std::unique_ptr<Command> bind_quantize(const OpCall& call);

}  // namespace nibblet
