#include <memory>

#include "kernels/mamba/cuda.h"
#include "test/cuda/device.h"
#include "test/kernels/mamba_layer.h"

namespace nibblet::test {
namespace {

const MambaLayerShape kNano = {64, 64, 8, 128, 4, DType::bf16, true};
const MambaLayerShape kTiny = {16, 64, 2, 128, 4, DType::bf16, true};

using Shapes = std::vector<MambaLayerShape>;

// In parts of about the same cost.
const Shapes kKnown = {{4, 64, 2, 128, 4, DType::bf16, true},    // the kernels for the known shape
                       {2, 20, 2, 128, 4, DType::bf16, true}};   // fewer rows than a block takes
const Shapes kUneven = {{3, 80, 1, 128, 4, DType::bf16, false},  // more, and not a multiple of them
                        {3, 17, 3, 33, 8, DType::bf16, true}};
const Shapes kOdd = {{6, 20, 3, 24, 3, DType::f32, true},  // nothing a multiple of 16
                     {4, 5, 1, 1, 2, DType::f32, false}};
const Shapes kShort = {{3, 8, 1, 16, 2, DType::bf16, true},
                       {2, 16, 2, 16, 1, DType::f32, true}};   // no convolution history
const Shapes kWide = {{2, 12, 1, 128, 4, DType::f32, true},    // the fast kernels' sizes in another dtype
                      {12, 65, 1, 130, 5, DType::f32, true}};  // a group wider than what a warp keeps of it
/// On a GPU alone.
const Shapes kReal = {kNano, kTiny};

Shapes shapes() {
  Shapes all;
  for (const Shapes* part : {&kKnown, &kUneven, &kOdd, &kShort, &kWide, &kReal}) {
    if (part != &kReal || on_gpu()) all.insert(all.end(), part->begin(), part->end());
  }
  return all;
}

/// A layer's operands on the device.
struct DeviceLayer {
  MambaArgs args;
  DeviceArray<uint8_t> projected, conv_state, y;
  DeviceArray<float> conv_weight, conv_bias, dt_bias, a_log, d, norm, ssm_state;
  DeviceArray<Slot> slots;
  DeviceStep step;

  DeviceLayer(const MambaArgs& host, int32_t slot_count)
      : args(host),
        projected(static_cast<const uint8_t*>(host.projected), rows(host) * row_bytes(host)),
        conv_state(static_cast<const uint8_t*>(host.conv_state),
                   size_t(slot_count) * channels(host) * size_t(host.kernel - 1) * dtype_bytes(host.type)),
        y(rows(host) * inner(host) * dtype_bytes(host.type)),
        conv_weight(host.conv_weight, channels(host) * size_t(host.kernel)),
        conv_bias(host.conv_bias, host.conv_bias ? channels(host) : 0),
        dt_bias(host.dt_bias, size_t(host.heads)),
        a_log(host.a_log, size_t(host.heads)),
        d(host.d, size_t(host.heads)),
        norm(host.norm, inner(host)),
        ssm_state(host.ssm_state, size_t(slot_count) * inner(host) * size_t(host.state)),
        slots(host.slots, host.slots ? size_t(slot_count) : 0),
        step(*host.step) {
    args.step = step.data();
    args.slots = host.slots ? slots.data() : nullptr;
    args.projected = projected.data();
    args.conv_weight = conv_weight.data();
    args.conv_bias = host.conv_bias ? conv_bias.data() : nullptr;
    args.dt_bias = dt_bias.data();
    args.a_log = a_log.data();
    args.d = d.data();
    args.norm = norm.data();
    args.conv_state = conv_state.data();
    args.ssm_state = ssm_state.data();
    args.y = y.data();
    args.convolved = nullptr;
    args.scanned = nullptr;
  }

  bool guards_intact() const {
    return conv_state.guards_intact() && y.guards_intact() && ssm_state.guards_intact();
  }

  static size_t rows(const MambaArgs& a) { return size_t(a.step->tokens); }
  static size_t inner(const MambaArgs& a) { return size_t(a.heads) * size_t(a.head_dim); }
  static size_t channels(const MambaArgs& a) { return inner(a) + 2 * size_t(a.groups) * size_t(a.state); }
  static size_t row_bytes(const MambaArgs& a) {
    return (inner(a) + channels(a) + size_t(a.heads)) * dtype_bytes(a.type);
  }
};

/// @param capacity  most tokens of a step; 0: as many as there are
MambaRun run_on_gpu(int32_t capacity = 0) {
  return [=](const MambaArgs& host, int32_t slot_count) {
    const CudaTarget& target = cuda_target();
    DeviceLayer layer(host, slot_count);
    const int32_t most = std::max(capacity, host.step->tokens);
    const CudaScratch scratch = mamba_cuda_scratch(layer.args, most, target);
    DeviceArray<uint8_t> workspace(scratch.workspace);
    DeviceArray<uint8_t> counters(scratch.counters, 0);
    check_cuda(mamba_cuda(layer.args, most, workspace.data(), counters.data(), target), "mamba");

    const auto copy = [](auto* to, const auto& from) {
      const auto values = from.read();
      std::copy(values.begin(), values.end(), to);
    };
    copy(static_cast<uint8_t*>(host.y), layer.y);
    copy(static_cast<uint8_t*>(host.conv_state), layer.conv_state);
    copy(host.ssm_state, layer.ssm_state);
    CHECK(layer.guards_intact() && workspace.guards_intact() && counters.guards_intact());
    for (const uint8_t byte : counters.read()) CHECK_EQ(int(byte), 0);
  };
}

/// Capacities of one launch with half heads, with whole heads, and of a launch for each phase.
constexpr int32_t kPrefill = 100;

}  // namespace

TEST(cuda_mamba_oracle) {
  check_mamba_oracle(run_on_gpu(), shapes());
  check_mamba_oracle(run_on_gpu(kPrefill), shapes());
}

TEST(cuda_mamba_pieces_known) { check_mamba_pieces(run_on_gpu(), kKnown); }
TEST(cuda_mamba_pieces_uneven) { check_mamba_pieces(run_on_gpu(), kUneven); }
TEST(cuda_mamba_pieces_odd) { check_mamba_pieces(run_on_gpu(), kOdd); }
TEST(cuda_mamba_pieces_short) { check_mamba_pieces(run_on_gpu(), kShort); }
TEST(cuda_mamba_pieces_wide) { check_mamba_pieces(run_on_gpu(), kWide); }
TEST(cuda_mamba_pieces_real) {
  if (only_on_gpu()) check_mamba_pieces(run_on_gpu(), kReal);
}

/// Prefill and decode add in the same order.
TEST(cuda_mamba_batch) {
  check_mamba_batch(run_on_gpu(), {run_on_gpu(), run_on_gpu(40), run_on_gpu(kPrefill)}, shapes());
}

/// Chunks longer than the tiles of the kernels, and more sequences than a block of the scan takes one of.
TEST(cuda_mamba_long) {
  const MambaLayerShape shape = {4, 64, 2, 128, 4, DType::bf16, true};
  const int32_t tokens = 53;
  const Elements projected = random_mamba_rows(shape, tokens, 3);
  MambaLayer whole(shape, 1, 5);
  const Elements y = run_mamba_in_pieces(run_on_gpu(), whole, projected, {tokens});
  MambaLayer prefilled(shape, 1, 5);
  CHECK(run_mamba_in_pieces(run_on_gpu(kPrefill), prefilled, projected, {20, 33}) == y);
  CHECK(prefilled.same_states(whole));
  MambaLayer decoded(shape, 1, 5);
  CHECK(run_mamba_in_pieces(run_on_gpu(), decoded, projected, std::vector<int32_t>(tokens, 1)) == y);
  CHECK(decoded.same_states(whole));

  const int32_t sequences = 20;
  Batch batch;
  for (int32_t s = 0; s < sequences; ++s) batch.add(sequences - 1 - s, 0, s % 3 + 1);
  const Elements rows = random_mamba_rows(shape, int32_t(batch.ids.size()), 8);
  MambaLayer mixed(shape, sequences, 5);
  MambaLayer phased(shape, sequences, 5);
  CHECK(mixed.run(run_on_gpu(), batch, rows) == phased.run(run_on_gpu(kPrefill), batch, rows));
  CHECK(mixed.same_states(phased));
}

TEST(cuda_mamba_empty) {
  for (const int32_t capacity : {1, 8, kPrefill}) {
    MambaLayer layer(kTiny, 1, 5);
    const MambaLayer before = layer;
    layer.run(run_on_gpu(capacity), Batch(), Elements(DType::bf16, 0));
    CHECK(std::memcmp(layer.ssm.data(), before.ssm.data(), before.ssm.size() * 4) == 0);
    CHECK(layer.conv == before.conv);
  }
}

TEST(cuda_mamba_refuses) {
  MambaArgs args = {};
  args.kernel = 9;
  CHECK(mamba_cuda(args, 1, nullptr, nullptr, cuda_target()) == cudaErrorInvalidValue);
}

/// Decode of every slot once, then a short and a longer prompt. Slots rotate over more memory than the second-level
/// cache has.
TEST(cuda_bench_mamba) {
  if (!benchmarks_asked_for()) return;
  const CudaTarget& target = cuda_target();
  const size_t slot_bytes = size_t(kNano.inner()) * 128 * 4;
  struct Case {
    int32_t sequences, tokens;
  };
  for (const Case c : {Case{1, 1}, {8, 8}, {32, 32}, {64, 64}, {1, 16}, {1, 64}, {1, 512}}) {
    const int copies = std::max(4, 32 / c.sequences);
    const int32_t slots = c.sequences * copies;
    MambaLayer host(kNano, 1, 3);
    std::vector<std::unique_ptr<DeviceLayer>> layers;
    // The operands of slots beyond the first are whatever memory holds; their values do not change the time.
    DeviceArray<float> states(size_t(slots) * slot_bytes / 4, 0);
    DeviceArray<uint8_t> conv(size_t(slots) * size_t(kNano.channels()) * 3 * 2, 0);
    const Elements projected = random_mamba_rows(kNano, c.tokens, 3);
    for (int i = 0; i < copies; ++i) {
      Batch batch;
      for (int32_t s = 0; s < c.sequences; ++s) {
        batch.add(i * c.sequences + s, 5, c.tokens / c.sequences);
      }
      host.run([&](const MambaArgs& args,
                   int32_t slot_count) { layers.push_back(std::make_unique<DeviceLayer>(args, slot_count)); },
               batch, projected);
      layers.back()->args.ssm_state = states.data();
      layers.back()->args.conv_state = conv.data();
    }
    const CudaScratch scratch = mamba_cuda_scratch(layers[0]->args, c.tokens, target);
    DeviceArray<uint8_t> workspace(scratch.workspace);
    DeviceArray<uint8_t> counters(scratch.counters, 0);
    const double us = graph_microseconds(copies, 20, [&](int i) {
      check_cuda(mamba_cuda(layers[size_t(i)]->args, c.tokens, workspace.data(), counters.data(), target),
                 "mamba");
    });
    const double bytes = 2.0 * c.sequences * (double(slot_bytes) + kNano.channels() * 6.0) +
                         c.tokens * 2.0 * (kNano.row() + kNano.inner()) + kNano.channels() * 20.0;
    std::printf("    mamba %4d sequences %5d tokens %8.2f us %7.1f GB/s %5.1f %%\n", c.sequences, c.tokens,
                us, bytes / us / 1e3, bytes / us / 1e3 / 30.80);
  }
}

}  // namespace nibblet::test
