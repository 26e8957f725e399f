#pragma once

#include <memory>

#include "kernels/moe/cuda.h"
#include "test/cuda/device.h"
#include "test/kernels/moe_layer.h"

namespace nibblet::test {

/// The shape with weights as they lie on a GPU.
inline MoeShape on_device(MoeShape shape) {
  shape.layout = shape.format == Format::f32 ? Layout::rows : Layout::fragments;
  shape.columns = shape.format == Format::nvfp4;
  return shape;
}

inline MoeShape make_shape(Format format, int32_t hidden, int32_t experts, int32_t top_k, int32_t width,
                           int32_t shared_width, int32_t groups = 1, int32_t topk_groups = 1,
                           bool biases = false, bool normalize = true) {
  MoeShape shape = {hidden, experts, top_k, width, shared_width, groups, topk_groups, format};
  shape.biases = biases;
  shape.normalize = normalize;
  return on_device(shape);
}

inline std::vector<float> random_rows(const MoeShape& shape, int32_t tokens, uint64_t seed) {
  return Random(seed).normals(size_t(tokens) * size_t(shape.hidden), 2);
}

/// Experts in device memory.
struct DeviceExperts {
  DeviceArray<uint8_t> bytes;
  DeviceArray<float> row_scales;
  WeightView view;

  explicit DeviceExperts(ExpertWeights& host)
      : bytes(host.bytes.data(), host.bytes.size()), row_scales(host.row_scales), view(host.view) {
    if (view.data == nullptr) return;
    view.data = bytes.data();
    view.row_scales = row_scales.data();
  }
};

/// A layer in device memory, and what one call wants.
struct DeviceMoe {
  MoeShape shape;
  int32_t capacity;
  DeviceExperts up, down, shared_up, shared_down;
  DeviceArray<float> norm, router, bias, up_bias, down_bias, shared_up_bias, shared_down_bias;
  DeviceArray<float> x;
  DeviceArray<uint64_t> statistics;
  MoeArgs args;
  std::unique_ptr<DeviceArray<uint8_t>> workspace, counters;
  CudaTarget target;

  DeviceMoe(MoeLayer& layer, int32_t most_tokens, const CudaTarget& on = cuda_target())
      : shape(layer.shape),
        capacity(most_tokens),
        up(layer.up),
        down(layer.down),
        shared_up(layer.shared_up),
        shared_down(layer.shared_down),
        norm(layer.norm),
        router(layer.router),
        bias(layer.bias),
        up_bias(layer.up_bias),
        down_bias(layer.down_bias),
        shared_up_bias(layer.shared_up_bias),
        shared_down_bias(layer.shared_down_bias),
        x(size_t(most_tokens) * size_t(layer.shape.hidden)),
        statistics(size_t(kMoeExperts) + size_t(layer.shape.experts), 0),
        target(on) {
    args = {capacity,
            shape.hidden,
            x.data(),
            norm.data(),
            1e-5f,
            false,
            router.data(),
            bias.data(),
            shape.experts,
            shape.top_k,
            shape.groups,
            shape.topk_groups,
            shape.normalize,
            layer.scale,
            up.view,
            down.view,
            shared_up.view,
            shared_down.view,
            shape.biases ? up_bias.data() : nullptr,
            shape.biases ? down_bias.data() : nullptr,
            shape.biases ? shared_up_bias.data() : nullptr,
            shape.biases ? shared_down_bias.data() : nullptr,
            nullptr};
    const CudaScratch scratch = moe_cuda_scratch(args, target);
    workspace = std::make_unique<DeviceArray<uint8_t>>(scratch.workspace);
    counters = std::make_unique<DeviceArray<uint8_t>>(scratch.counters, 0);
  }

  /// @return x after the layer, `rows` alone of the capacity
  std::vector<float> run(const std::vector<float>& rows, bool counted = false) {
    const int32_t tokens = int32_t(rows.size()) / shape.hidden;
    std::vector<float> padded(x.size(), 7.5f);
    std::copy(rows.begin(), rows.end(), padded.begin());
    x.write(padded.data());
    // Nothing that an earlier run left may matter.
    check_cuda(cudaMemset(workspace->data(), 0xff, workspace->bytes()), "cudaMemset");
    check_cuda(cudaDeviceSynchronize(), "cudaMemset");
    Batch batch;
    for (int32_t t = 0; t < tokens; ++t) batch.add(t, 0, 1);
    const DeviceStep step(batch.step());
    check_cuda(moe_cuda(args, step.data(), counted ? statistics.data() : nullptr, workspace->data(),
                        counters->data(), target),
               "moe_cuda");
    std::vector<float> result = x.read();
    CHECK(std::all_of(result.begin() + ptrdiff_t(rows.size()), result.end(),
                      [](float v) { return v == 7.5f; }));
    for (const uint8_t byte : counters->read()) CHECK_EQ(byte, 0);
    CHECK(workspace->guards_intact() && counters->guards_intact() && x.guards_intact() &&
          statistics.guards_intact());
    result.resize(rows.size());
    return result;
  }
};

}  // namespace nibblet::test
