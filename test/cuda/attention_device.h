#pragma once

#include "kernels/attention/cuda.h"
#include "test/cuda/device.h"
#include "test/kernels/attention_layer.h"

/// Attention on the device, for the tests of what it gives and of how long it takes.
namespace nibblet::test {

inline constexpr AttentionLayerShape kNanoAttention = {32, 2, 128, DType::bf16, DType::e4m3};

/// A layer's operands on the device.
struct DeviceAttention {
  AttentionArgs args;
  DeviceArray<uint8_t> qkv, cache, y;
  DeviceArray<Slot> slots;
  DeviceStep step;

  DeviceAttention(const AttentionArgs& host, const AttentionSizes& sizes)
      : args(host),
        qkv(static_cast<const uint8_t*>(host.qkv),
            size_t(host.step->tokens) * size_t(host.heads + 2 * host.kv_heads) * element(host)),
        cache(static_cast<const uint8_t*>(host.cache), size_t(sizes.pages) * 2 * size_t(host.kv_heads) *
                                                           kPageTokens * size_t(host.head_dim) *
                                                           dtype_bytes(host.cache_type)),
        y(size_t(host.step->tokens) * size_t(host.heads) * element(host)),
        slots(host.slots, size_t(sizes.slots)),
        step(*host.step) {
    args.step = step.data();
    args.slots = host.slots ? slots.data() : nullptr;
    args.qkv = qkv.data();
    args.cache = cache.data();
    args.y = y.data();
  }
  static size_t element(const AttentionArgs& a) { return size_t(a.head_dim) * dtype_bytes(a.type); }
};

struct Machine {
  int32_t capacity = 0;         ///< most tokens of a step; less than there are: as many
  int32_t multiprocessors = 0;  ///< that contexts are cut for; 0: those of the GPU
};

inline AttentionRun run_on_gpu(Machine machine = {}) {
  return [=](const AttentionArgs& host, const AttentionSizes& sizes) {
    CudaTarget target = cuda_target();
    if (machine.multiprocessors > 0) target.multiprocessors = machine.multiprocessors;
    DeviceAttention layer(host, sizes);
    const int32_t capacity = std::max(machine.capacity, host.step->tokens);
    const CudaScratch scratch = attention_cuda_scratch(layer.args, capacity, target);
    DeviceArray<uint8_t> workspace(scratch.workspace);
    DeviceArray<uint8_t> counters(scratch.counters, 0);
    check_cuda(attention_cuda(layer.args, capacity, workspace.data(), counters.data(), target), "attention");

    const std::vector<uint8_t> y = layer.y.read();
    const std::vector<uint8_t> cache = layer.cache.read();
    std::copy(y.begin(), y.end(), static_cast<uint8_t*>(host.y));
    std::copy(cache.begin(), cache.end(), static_cast<uint8_t*>(host.cache));
    CHECK(layer.y.guards_intact() && layer.cache.guards_intact());
    CHECK(workspace.guards_intact() && counters.guards_intact());
    for (const uint8_t byte : counters.read()) CHECK_EQ(int(byte), 0);
  };
}

}  // namespace nibblet::test
