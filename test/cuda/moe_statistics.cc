#include "kernels/pack/layout.h"
#include "test/cuda/moe_device.h"

namespace nibblet::test {

TEST(cuda_moe_statistics) {
  const MoeShape shape = make_shape(Format::nvfp4, 64, 16, 3, 48, 96, 1, 1, true);
  MoeLayer layer(shape, 3);
  const auto with_bias = [&](float bias) {
    std::fill(layer.up_bias.begin(), layer.up_bias.end(), bias);
    std::fill(layer.shared_up_bias.begin(), layer.shared_up_bias.end(), bias);
  };
  for (const int32_t tokens : {1, 4, 70}) {
    const std::vector<float> x = random_rows(shape, tokens, 5);
    // What the CPU counts of the same layer.
    MoeShape host_shape = shape;
    host_shape.layout = Layout::panels;
    MoeLayer host(host_shape, 3);
    std::vector<uint64_t> expected(size_t(kMoeExperts) + 16);
    host.run(x, 1, expected.data());
    uint64_t touched = 0;
    for (size_t e = kMoeExperts; e < expected.size(); ++e) touched += expected[e] > 0;
    const uint64_t up_bytes = touched * layer.up.view.matrix_bytes + layer.shared_up.view.matrix_bytes;
    const uint64_t down_bytes = touched * layer.down.view.matrix_bytes + layer.shared_down.view.matrix_bytes;
    const uint64_t host_up = touched * host.up.view.matrix_bytes + host.shared_up.view.matrix_bytes;

    with_bias(0.1f);
    layer.up_bias = host.up_bias;
    layer.shared_up_bias = host.shared_up_bias;
    DeviceMoe device(layer, tokens);
    device.run(x, true);
    std::vector<uint64_t> counts = device.statistics.read();
    for (size_t e = kMoeExperts; e < counts.size(); ++e) CHECK_EQ(counts[e], expected[e]);
    CHECK_EQ(counts[kMoeActivations], expected[kMoeActivations]);
    CHECK_EQ(counts[kMoeZeros], expected[kMoeZeros]);
    const uint64_t read = tokens > 64 ? down_bytes : expected[kMoeWeightBytes] - host_up;
    CHECK_EQ(counts[kMoeWeightBytes], up_bytes + read);
    // A second call adds as much again.
    device.run(x, true);
    const std::vector<uint64_t> twice = device.statistics.read();
    for (size_t i = 0; i < counts.size(); ++i) CHECK_EQ(twice[i], 2 * counts[i]);
  }
  with_bias(-1e6f);
  layer.shared_up_bias[17] = 1e6f;
  DeviceMoe device(layer, 4);
  device.run(random_rows(shape, 4, 5), true);
  const std::vector<uint64_t> counts = device.statistics.read();
  uint64_t bytes = layer.shared_up.view.matrix_bytes + 3 * column_bytes(64);
  for (size_t e = kMoeExperts; e < counts.size(); ++e) bytes += counts[e] ? layer.up.view.matrix_bytes : 0;
  CHECK_EQ(counts[kMoeWeightBytes], bytes);
}

}  // namespace nibblet::test
