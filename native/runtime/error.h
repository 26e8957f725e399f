#pragma once

#include <stdexcept>
#include <string>
#include <utility>

namespace nibblet {

/// An error with one of the codes of lib/errors.ts. `op` names the failed op for OP_FAILED.
class Error : public std::runtime_error {
 public:
  Error(std::string code, const std::string& message, std::string op = {})
      : std::runtime_error(message), code_(std::move(code)), op_(std::move(op)) {}

  const std::string& code() const { return code_; }
  const std::string& op() const { return op_; }

 private:
  std::string code_;
  std::string op_;
};

/// A call with arguments that cannot be: the caller's mistake, found before anything was enqueued.
inline Error invalid(const std::string& message) { return Error("INVALID_OPTION", message); }

}  // namespace nibblet
