#pragma once

#include "kernels/moe/columns.cuh"
#include "kernels/moe/nonzero.cuh"
#include "kernels/pack/layout.h"

/// What `down` of several tokens reads for one token: the columns of its nonzero activations, and the block scales that
/// those have in common.
namespace nibblet::moe_live {

/// Live columns that are multiplied at once, the inner dimension of an mma, and blocks that they may come from, its columns.
constexpr int32_t kStepColumns = 16;
constexpr int32_t kStepBlocks = 8;

/// A column that an activation multiplies.
struct Column {
  uint32_t start;  ///< in bytes from the codes of the part
  /// The activation · 2⁶⁰ in bf16, above the number of its block among those that have live columns.
  uint32_t use;
};
/// A block of inputs with live columns.
struct Block {
  uint32_t start;  ///< in bytes, likewise
  int32_t first;   ///< its first column in the list
};

/// Columns in order, then as many of no block, then blocks in order, then as many that start at the end of the columns: steps
/// read past the last without asking.
struct List {
  static constexpr int32_t kColumns = kMoeListBlocks * kBlockInputs + kStepColumns;
  static constexpr int32_t kBlocks = kMoeListBlocks + kStepBlocks + 1;
  static constexpr size_t kBytes = (kColumns * sizeof(Column) + kBlocks * sizeof(Block) + 15) / 16 * 16;
  static constexpr uint32_t kNoBlock = 0xffff;

  Column* columns;
  Block* blocks;
  int32_t count;  ///< of columns

  __device__ explicit List(void* memory)
      : columns(static_cast<Column*>(memory)),
        blocks(reinterpret_cast<Block*>(columns + kColumns)),
        count(0) {}

  /// Lists up to kMoeListBlocks blocks of 16 inputs, one a thread. By all threads of a block, kMoeListBlocks or more.
  /// @param scratch  32 · kMoeListBlocks bytes
  /// @param counts   [kMoeListBlocks / 32]
  template <int kMostThreads>
  __device__ void make(const uint16_t* hidden, int32_t inputs, int32_t out, uint16_t* scratch,
                       int32_t* counts) {
    const int32_t thread = int32_t(threadIdx.x);
    uint16_t* const own = scratch + thread * kBlockInputs;
    uint32_t live = 0;
    if (thread < inputs) {
      const uint4* from = reinterpret_cast<const uint4*>(hidden) + thread * 2;
      const uint4 halves[2] = {__ldcg(from), __ldcg(from + 1)};
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        reinterpret_cast<uint4*>(own)[i] = halves[i];
        const uint32_t pairs[4] = {halves[i].x, halves[i].y, halves[i].z, halves[i].w};
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          live |= uint32_t((pairs[j] & 0x7fffu) != 0) << (8 * i + 2 * j);
          live |= uint32_t((pairs[j] & 0x7fff0000u) != 0) << (8 * i + 2 * j + 1);
        }
      }
    }
    // Columns and blocks are counted in one sum.
    const MoeListPlace listed = moe_list_place<kMostThreads>(__popc(live) | int32_t(live != 0) << 16, counts);
    count = listed.total & 0xffff;
    int32_t place = listed.first & 0xffff;
    const uint32_t number = uint32_t(listed.first) >> 16, column_size = uint32_t(column_bytes(out)),
                   start = uint32_t(thread) * uint32_t(column_block_bytes(out));
    if (live != 0) blocks[number] = {start, place};
#pragma unroll 1
    for (; live != 0; live &= live - 1, ++place) {
      const int32_t i = __ffs(int(live)) - 1;
      const uint32_t activation = multiply_bf16x2(own[i], columns::kHalfUnits);
      columns[place] = {start + uint32_t(i) * column_size, activation << 16 | number};
    }
    if (thread < kStepColumns) columns[count + thread] = {0, kNoBlock};
    if (thread <= kStepBlocks) blocks[(listed.total >> 16) + thread] = {0, count};
    __syncthreads();
  }
};

/// A step of a list: some of its columns, and the blocks that they come from.
struct ListStep {
  int32_t first;  ///< column
  int32_t block;  ///< of that column
  int32_t end;    ///< column

  __device__ ListStep(const List& list, int32_t column) : first(column) {
    block = int32_t(list.columns[column].use & 0xffff);
    end = first;
    if (first < list.count) {
      end = min(min(first + kStepColumns, list.blocks[block + kStepBlocks].first), list.count);
    }
  }
};

}  // namespace nibblet::moe_live
