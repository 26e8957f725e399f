#include "native/runtime/write.h"

#include <cstring>
#if NIBBLET_CUDA
#include "native/runtime/cuda/execution.h"
#endif

namespace nibblet {
namespace {

class Write : public Command {
 public:
  Write(const Tensor& to, std::vector<uint8_t> data) : to_(to), data_(std::move(data)) {}
  const char* name() const override { return "write"; }
  void run(const Execution&) override { std::memcpy(to_.as<void>(), data_.data(), data_.size()); }
#if NIBBLET_CUDA
  void enqueue(const CudaExecution& execution) override {
    check_cuda(cudaMemcpyAsync(to_.as<void>(), data_.data(), data_.size(), cudaMemcpyHostToDevice,
                               execution.target.stream),
               "a write to the GPU");
  }
#endif

 private:
  Tensor to_;
  std::vector<uint8_t> data_;
};

}  // namespace

std::unique_ptr<Command> write_tensor(const Tensor& to, std::vector<uint8_t> data) {
  return std::make_unique<Write>(to, std::move(data));
}

}  // namespace nibblet
