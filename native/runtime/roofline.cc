#include "native/runtime/roofline.h"

#include <algorithm>
#include <chrono>
#include <limits>
#include <vector>

#include "kernels/roofline/read.h"
#include "native/runtime/error.h"
#if NIBBLET_CUDA
#include "kernels/roofline/cuda.h"
#include "native/runtime/cuda/execution.h"
#include "native/runtime/cuda/timer.h"
#endif

namespace nibblet {
namespace {

class MeasureRead : public Command {
 public:
  MeasureRead(const Tensor& source, const Tensor& result, int times)
      : source_(source), result_(result), times_(times) {
    if (!source || source.bytes() == 0 || source.bytes() % 512 != 0 || source.offset % 64 != 0) {
      throw invalid("reading is measured on a multiple of 512 bytes that begins at a multiple of 64");
    }
    if (!result || result.dtype != DType::f32 || result.elements() != 1) {
      throw invalid("the seconds go to an f32 [1]");
    }
    if (times < 1) throw invalid("expected at least one time to read");
  }
  const char* name() const override { return "measureRead"; }

  void run(const Execution& execution) override {
    // A page that was never written is one page of zeros for all of them, which a cache holds.
    for (size_t at = 0; at < source_.bytes(); at += 4096) {
      volatile uint8_t* byte = source_.as<uint8_t>() + at;
      *byte = *byte;
    }
    std::vector<uint64_t> sums(size_t(execution.threads));
    ReadArgs args{source_.as<uint64_t>(), source_.bytes() / sizeof(uint64_t), sums.data()};
    std::chrono::duration<float> best = std::chrono::hours(1);
    for (int i = 0; i < times_; ++i) {
      if (execution.cancelled && execution.cancelled->load(std::memory_order_relaxed)) return;
      auto start = std::chrono::steady_clock::now();
      run_phases_unsliced(execution, read_words, kReadPhases, args);
      best = std::min<std::chrono::duration<float>>(best, std::chrono::steady_clock::now() - start);
    }
    *result_.as<float>() = best.count();
  }

#if NIBBLET_CUDA
  void enqueue(const CudaExecution& execution) override {
    const cudaStream_t stream = execution.target.stream;
    const Buffer sums(result_.buffer->device(),
                      size_t(read_roofline_sums(execution.target)) * sizeof(uint64_t));
    CudaTimer timer(stream);
    float best = std::numeric_limits<float>::infinity();
    // Twice more: clocks rise with the first.
    for (int i = 0; i < times_ + 2; ++i) {
      timer.start();
      check_cuda(read_roofline_cuda(source_.as<void>(), source_.bytes(),
                                    reinterpret_cast<uint64_t*>(sums.data()), execution.target),
                 "measuring the read roofline");
      best = std::min(best, timer.stop());
    }
    check_cuda(cudaMemcpyAsync(result_.as<void>(), &best, sizeof best, cudaMemcpyHostToDevice, stream),
               "a write to the GPU");
  }
#endif

 private:
  Tensor source_, result_;
  int times_;
};

}  // namespace

std::unique_ptr<Command> measure_read(const Tensor& source, const Tensor& result, int times) {
  return std::make_unique<MeasureRead>(source, result, times);
}

}  // namespace nibblet
