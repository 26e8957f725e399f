#include <memory>

#include "kernels/embed/cuda.h"
#include "kernels/numerics/bf16.h"
#include "test/cuda/device.h"
#include "test/kernels/inputs.h"

using namespace nibblet;
using namespace nibblet::test;

namespace {

constexpr int32_t kVocabulary = 37;

/// Decode steps of slots 3 and 1, an idle slot that holds nothing, and a prompt.
Batch make_batch() {
  Batch batch;
  batch.add(3, 7, 1, kDecode);
  batch.add(1, 9, 1, kDecode);
  batch.add(2, 0, 1, kDecode);
  batch.add(0, 0, 4);
  const int32_t prompt[] = {36, 0, 5, 5};
  std::copy(std::begin(prompt), std::end(prompt), batch.ids.begin() + 3);
  return batch;
}

/// @param offset  elements that table and y are off from an alignment of 256 bytes
void check_embed(DType type, int32_t hidden, int32_t capacity, size_t offset = 0) {
  const std::vector<float> table = random_floats(size_t(kVocabulary) * hidden, uint32_t(hidden));
  std::vector<uint16_t> narrow;
  for (float value : table) narrow.push_back(bf16_from_float(value));
  const size_t size = dtype_bytes(type);
  std::vector<uint8_t> bytes((offset + table.size()) * size);
  std::memcpy(bytes.data() + offset * size, type == DType::f32 ? (const void*)table.data() : narrow.data(),
              table.size() * size);
  const DeviceArray<uint8_t> device_table(bytes);
  // What an idle slot holds would be far outside the table.
  std::vector<Slot> slots(4, Slot{1 << 30, 0, 0, 0, 0, {}});
  slots[3] = {4, 1, 0, 0, 0, {}};
  slots[1] = {8, 1, 0, 0, 0, {}};
  const DeviceArray<Slot> device_slots(slots);
  const DeviceArray<float> y(offset + size_t(capacity) * hidden);
  const Batch batch = make_batch();
  const DeviceStep step(batch.step());
  check_cuda(embed_cuda({step.data(), device_slots.data(), device_table.data() + offset * size, type, hidden,
                         y.data() + offset},
                        capacity, cuda_target()),
             "embed_cuda");
  const std::vector<float> result = y.read();
  const int32_t expected[] = {4, 8, -1, 36, 0, 5, 5};
  for (int32_t t = 0; t < capacity; ++t) {
    for (int32_t k = 0; k < hidden; ++k) {
      const float value = result[offset + size_t(t) * hidden + k];
      // A row beyond the step is not written, and that of an idle slot may hold anything.
      if (t >= 7) {
        CHECK(std::isnan(value));
      } else if (expected[t] >= 0) {
        const size_t index = size_t(expected[t]) * hidden + k;
        CHECK_EQ(value, type == DType::f32 ? table[index] : bf16_to_float(narrow[index]));
      }
    }
  }
  CHECK(y.guards_intact());
}

}  // namespace

TEST(cuda_embed_rows) {
  for (DType type : {DType::f32, DType::bf16}) {
    for (int32_t hidden : {1, 4, 8, 19, 64, 2688}) {
      for (int32_t capacity : {7, 40}) check_embed(type, hidden, capacity);
    }
    check_embed(type, 64, 9, 1);
  }
}

TEST(cuda_embed_without_slots) {
  const std::vector<float> table = random_floats(16, 1);
  const DeviceArray<float> device_table(table), y(32);
  Batch batch;
  batch.add(0, 0, 1);
  batch.ids[0] = 1;
  const DeviceStep step(batch.step());
  Step nothing{};
  DeviceArray<Step> empty(&nothing, 1);
  for (const Step* given : {static_cast<const Step*>(empty.data()), step.data()}) {
    check_cuda(embed_cuda({given, nullptr, device_table.data(), DType::f32, 8, y.data()}, 4, cuda_target()),
               "embed_cuda");
    const std::vector<float> result = y.read();
    if (given == empty.data()) {
      for (float value : result) CHECK(std::isnan(value));
    } else {
      for (size_t k = 0; k < 8; ++k) CHECK_EQ(result[k], table[8 + k]);
    }
  }
}

TEST(cuda_bench_embed) {
  if (!benchmarks_asked_for()) return;
  constexpr int32_t kHidden = 2688, kRows = 131072;
  const DeviceArray<uint16_t> table(size_t(kRows) * kHidden, 0x11);
  for (int32_t tokens : {1, 8, 64, 2048}) {
    // Every copy decodes ids of its own, so that the rows are cold.
    constexpr int kCopies = 32;
    std::vector<std::unique_ptr<DeviceStep>> steps;
    Random random(3);
    for (int i = 0; i < kCopies; ++i) {
      Batch batch;
      batch.add(0, 0, tokens);
      for (int32_t& id : batch.ids) id = random.below(kRows);
      steps.push_back(std::make_unique<DeviceStep>(batch.step()));
    }
    const DeviceArray<float> y(size_t(tokens) * kHidden);
    const double time = graph_microseconds(kCopies, 20, [&](int i) {
      check_cuda(embed_cuda({steps[size_t(i)]->data(), nullptr, table.data(), DType::bf16, kHidden, y.data()},
                            tokens, cuda_target()),
                 "embed_cuda");
    });
    std::printf("    %4d tokens: %6.2f us, %6.0f GB/s\n", tokens, time,
                double(tokens) * kHidden * 6 / time / 1e3);
  }
}
