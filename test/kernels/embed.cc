#include "kernels/embed/embed.h"

#include "kernels/numerics/bf16.h"
#include "test/kernels/harness.h"
#include "test/kernels/inputs.h"
#include "test/kernels/weights.h"

using namespace nibblet;
using namespace nibblet::test;

TEST(embed_rows) {
  constexpr int32_t kVocabulary = 11, kHidden = 19;
  std::vector<float> table = random_floats(kVocabulary * kHidden, 1);
  std::vector<uint16_t> narrow;
  for (float value : table) narrow.push_back(bf16_from_float(value));
  // Two decode steps (ids in slots 3 and 1), then a prompt of four tokens.
  constexpr int32_t kIds[] = {-1, -1, 10, 0, 5, 5};
  constexpr int32_t kSequenceOf[] = {0, 1, 2, 2, 2, 2};
  constexpr Sequence kSequences[] = {{3, 0, 1, 7, kDecode, 0}, {1, 1, 1, 9, kDecode, 0}, {0, 2, 4, 0, 0, 0}};
  Slot slots[4] = {};
  slots[3].token = 4;
  slots[1].token = 8;
  constexpr int32_t kExpected[] = {4, 8, 10, 0, 5, 5};
  Step step{};
  step.tokens = 6;
  step.sequence_count = 3;
  step.ids = kIds;
  step.sequence_of = kSequenceOf;
  step.sequences = kSequences;
  for (DType type : {DType::f32, DType::bf16}) {
    for (int workers : {1, 2, 7}) {
      GuardedBytes y(6 * kHidden * sizeof(float), 0xff);
      EmbedArgs args = {&step, slots,   type == DType::f32 ? (const void*)table.data() : narrow.data(),
                        type,  kHidden, y.as<float>()};
      for (int worker = 0; worker < workers; worker++) embed(args, 0, worker, workers);
      for (int32_t t = 0; t < 6; t++) {
        for (int32_t k = 0; k < kHidden; k++) {
          size_t index = size_t(kExpected[t] * kHidden + k);
          CHECK_EQ(y.as<float>()[t * kHidden + k],
                   type == DType::f32 ? table[index] : bf16_to_float(narrow[index]));
        }
      }
      CHECK(y.guards_intact());
    }
  }
}
