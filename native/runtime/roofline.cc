#include "native/runtime/roofline.h"

#include <algorithm>
#include <chrono>
#include <vector>

#include "kernels/roofline/read.h"
#include "native/runtime/error.h"

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

 private:
  Tensor source_, result_;
  int times_;
};

}  // namespace

std::unique_ptr<Command> measure_read(const Tensor& source, const Tensor& result, int times) {
  return std::make_unique<MeasureRead>(source, result, times);
}

}  // namespace nibblet
