#include <bit>
#include <cstring>

#include "kernels/numerics/bf16.h"
#include "kernels/numerics/f16.h"
#include "test/emulator/block.h"
#include "test/emulator/device.h"

namespace nibblet::emulated {

struct MmaIn {
  uint32_t a[4];
  uint32_t b[2];
  float c[4];
};

static float low(uint32_t pair) { return std::bit_cast<float>(pair << 16); }
static float high(uint32_t pair) { return std::bit_cast<float>(pair & 0xffff0000u); }

static void multiply(const Lane* lanes, uint32_t arrived) {
  if (arrived != 0xffffffffu) fault("mma wants all 32 lanes of the warp");
  float a[16][16], b[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const auto& in = *static_cast<const MmaIn*>(lanes[lane].in);
    const int g = lane / 4, t = lane % 4 * 2;
    for (int part = 0; part < 4; ++part) {
      const int row = g + part % 2 * 8, column = t + part / 2 * 8;
      a[row][column] = low(in.a[part]);
      a[row][column + 1] = high(in.a[part]);
    }
    for (int part = 0; part < 2; ++part) {
      b[t + part * 8][g] = low(in.b[part]);
      b[t + part * 8 + 1][g] = high(in.b[part]);
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    const auto& in = *static_cast<const MmaIn*>(lanes[lane].in);
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
      double sum = 0;
      for (int k = 0; k < 16; ++k) sum += double(a[row][k]) * b[k][column];
      static_cast<float*>(lanes[lane].out)[i] = float(in.c[i] + sum);
    }
  }
}

void mma_bf16(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1,
              Place where) {
  const MmaIn in{{a0, a1, a2, a3}, {b0, b1}, {c[0], c[1], c[2], c[3]}};
  float out[4];
  collective(Collective::mma, 0xffffffffu, &in, out, multiply, where);
  std::memcpy(c, out, sizeof out);
}

static void transpose(const Lane* lanes, uint32_t arrived) {
  if (arrived != 0xffffffffu) fault("ldmatrix wants all 32 lanes of the warp");
  const auto element = [&](int row, int index) {
    uint16_t value;
    std::memcpy(&value, *static_cast<const char* const*>(lanes[row].in) + index * 2, sizeof value);
    return value;
  };
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; ++i) {
      static_cast<uint32_t*>(lanes[lane].out)[i] =
          element(8 * i + 2 * t, g) | uint32_t{element(8 * i + 2 * t + 1, g)} << 16;
    }
  }
}

void load_transposed(uint32_t (&words)[4], const void* row, Place where) {
  check_alignment(row, 16, "ldmatrix", where);
  collective(Collective::ldmatrix, 0xffffffffu, &row, words, transpose, where);
}

float2 floats_of_f16_pair(uint32_t pair) {
  return {f16_to_float(uint16_t(pair)), f16_to_float(uint16_t(pair >> 16))};
}

uint32_t multiply_bf16x2(uint32_t a, uint32_t b) {
  return uint32_t(bf16_from_float(high(a) * high(b))) << 16 | bf16_from_float(low(a) * low(b));
}

}  // namespace nibblet::emulated
