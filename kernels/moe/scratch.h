#pragma once

#include "kernels/linear/matmul.h"
#include "kernels/moe/moe.h"

namespace nibblet {

/// Tokens that share one pass over an expert's weights.
constexpr int32_t kMoeTile = 32;

/// The scratch memory of one call. Rows that Matmul reads or writes are padded to a multiple of 16 floats.
struct MoeScratch {
  float* normed;     ///< [tokens, hidden, padded] x̂ with zero padding
  BfpBlock* blocks;  ///< [tokens, hidden / 16, rounded up] x̂ for weights of plan_bfp
  float* hidden;     ///< [tokens · top_k, width, padded], by entry, zero padding
  float* shared;     ///< [tokens, shared width, padded], zero padding
  float* products;   ///< [tokens · top_k, hidden, padded] by entry, then [tokens] of the shared expert
  float* scores;     ///< [tokens, experts] sigmoid of the router's logits
  float* choice;     ///< [experts + groups] of one token at a time
  float* weights;    ///< [tokens, top_k]
  int32_t* chosen;   ///< [tokens, top_k] experts, ascending; an entry is an index into this
  int32_t* entries;  ///< [tokens · top_k] by expert, then token
  int32_t* first;    ///< [experts + 1] where each expert's entries start
  size_t bytes;

  MoeScratch(const MoeArgs& args, int64_t tokens)
      : hidden_stride(round_up(args.hidden, kBlockInputs)),
        width_stride(round_up(args.up.out, kBlockInputs)),
        shared_stride(args.shared_up.data == nullptr ? 0 : round_up(args.shared_up.out, kBlockInputs)) {
    size_t offset = 0;
    const auto take = [&]<typename T>(T*& array, size_t count) {
      array = args.scratch == nullptr ? nullptr
                                      : reinterpret_cast<T*>(static_cast<uint8_t*>(args.scratch) + offset);
      offset += (count * sizeof(T) + 63) / 64 * 64;
    };
    const size_t entry_count = size_t(tokens) * args.top_k;
    take(normed, size_t(tokens) * hidden_stride);
    take(blocks, size_t(tokens) * row_blocks());
    take(hidden, entry_count * width_stride);
    take(shared, size_t(tokens) * shared_stride);
    take(products, (entry_count + (shared_stride > 0 ? size_t(tokens) : 0)) * hidden_stride);
    take(scores, size_t(tokens) * args.experts);
    take(choice, size_t(args.experts) + args.groups);
    take(weights, entry_count);
    take(chosen, entry_count);
    take(entries, entry_count);
    take(first, size_t(args.experts) + 1);
    bytes = offset;
  }

  int32_t row_blocks() const { return hidden_stride / kBlockInputs; }
  float* normed_row(int64_t token) const { return normed + token * hidden_stride; }
  BfpBlock* blocks_row(int64_t token) const { return blocks + token * row_blocks(); }
  float* hidden_row(int64_t entry) const { return hidden + entry * width_stride; }
  float* product_row(int64_t i) const { return products + i * hidden_stride; }
  float* shared_row(int64_t token) const { return shared + token * shared_stride; }

  int32_t hidden_stride;
  int32_t width_stride;
  int32_t shared_stride;
};

/// As plan_bfp for the weight of an `up` or a shared `up`.
inline const BfpKernels* up_bfp(const MoeArgs& args, const WeightView& weight) {
  return args.exact || weight.data == nullptr ? nullptr : plan_bfp(weight);
}

void moe_normalise(const MoeArgs& args, const MoeScratch& scratch, int worker, int workers);
void moe_score(const MoeArgs& args, const MoeScratch& scratch, int worker, int workers);
void moe_choose(const MoeArgs& args, const MoeScratch& scratch, int worker, int workers);
void moe_up(const MoeArgs& args, const MoeScratch& scratch, int worker, int workers);
void moe_down(const MoeArgs& args, const MoeScratch& scratch, int worker, int workers);
void moe_combine(const MoeArgs& args, const MoeScratch& scratch, int worker, int workers);

}  // namespace nibblet
