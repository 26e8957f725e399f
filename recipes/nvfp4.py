"""NVFP4 and FP8 numerics in numpy: the project's independent statement of what the native quantiser must produce.

Formats (all values are float32 unless said otherwise):

* e2m1 (FP4): codes 0..7 are 0, 0.5, 1, 1.5, 2, 3, 4, 6; bit 3 is the sign.
* e4m3fn (FP8): bias 7, largest 448, 0x7F and 0xFF are NaN, no infinities.
* NVFP4 matrix [out, in]: codes packed two a byte [out, in / 2] with the even column in the low nibble, one e4m3 scale
  for every 16 columns [out, in / 16], and one float32 scale for the matrix.

Every intermediate is rounded to float32 in the order written here; that order is the definition.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BLOCK = 16
E2M1_MAX = 6.0
E4M3_MAX = 448.0
E4M3_MIN_SUBNORMAL = 2.0**-9

E2M1_VALUES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=np.float32)


def _e4m3_table() -> np.ndarray:
    """Values of the 256 e4m3fn bytes. Shape [256]."""
    codes = np.arange(256)
    exponent, mantissa = (codes >> 3) & 15, codes & 7
    magnitude = np.where(exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * 2.0 ** (exponent - 10.0))
    magnitude[(codes & 127) == 127] = np.nan
    return np.where(codes & 128, -magnitude, magnitude).astype(np.float32)


E4M3_VALUES = _e4m3_table()


def _nearest_even(magnitude: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Index of the nearest grid value, ties to the even index, values past the end saturate.

    `grid` ascends from 0 and its even indices have an even significand. Midpoints of both formats are exact in float32.
    """
    midpoints = (grid[1:] + grid[:-1]) * np.float32(0.5)
    below = np.searchsorted(midpoints, magnitude, side='left')  # a tie goes down
    above = np.searchsorted(midpoints, magnitude, side='right')  # a tie goes up
    return np.where(below % 2 == 0, below, above).astype(np.uint8)


def encode_e2m1(values: np.ndarray) -> np.ndarray:
    """float32 [...] to e2m1 codes [...] u8 (0..15): nearest even, saturating at 6.

    A negative value that rounds to zero gives 8 (minus zero); an input of minus zero gives 0, as ModelOpt's `x < 0`.
    """
    codes = _nearest_even(np.abs(values), E2M1_VALUES)
    return np.where(values < 0, codes | 8, codes).astype(np.uint8)


def encode_e4m3(values: np.ndarray) -> np.ndarray:
    """float32 [...] to e4m3fn bytes [...] u8: nearest even, saturating at 448, the sign of zero kept."""
    codes = _nearest_even(np.abs(values), E4M3_VALUES[:127])
    return np.where(np.signbit(values), codes | 128, codes).astype(np.uint8)


def decode_e2m1(codes: np.ndarray) -> np.ndarray:
    """e2m1 codes [...] u8 (0..15) to float32 [...]."""
    magnitude = E2M1_VALUES[codes & 7]
    return np.where(codes & 8, -magnitude, magnitude)


def pack_nibbles(codes: np.ndarray) -> np.ndarray:
    """Codes [..., in] to bytes [..., in / 2]; the even column is the low nibble."""
    return (codes[..., 0::2] | (codes[..., 1::2] << 4)).astype(np.uint8)


def unpack_nibbles(packed: np.ndarray) -> np.ndarray:
    """Bytes [..., in / 2] to codes [..., in]."""
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)


@dataclass(frozen=True)
class Nvfp4:
    """A quantised matrix: packed u8 [out, in / 2], block_scale e4m3 bytes u8 [out, in / 16], scale float32."""

    packed: np.ndarray
    block_scale: np.ndarray
    scale: np.float32

    def dequantize(self) -> np.ndarray:
        """float32 [out, in] = (e2m1 · block scale, exact) · scale, rounded once."""
        values = decode_e2m1(unpack_nibbles(self.packed))
        blocks = values.reshape(*values.shape[:-1], -1, BLOCK) * E4M3_VALUES[self.block_scale][..., None]
        return (blocks * self.scale).reshape(values.shape)


def quantize_nvfp4(weight: np.ndarray) -> Nvfp4:
    """Quantise float32 [out, in] (finite, in a multiple of 16) after training, as ModelOpt does.

    scale = amax / (6 · 448);
    block scale = e4m3(clamp(block amax / (6 · scale), 2^-9, 448)), where a quotient of exactly 0 counts as 1;
    code = e2m1(w / (float(block scale) · scale)), 0 where that step is 0.
    A scale of 0 (a matrix of zeros, or too small for float32) gives codes 0 and block scales 1.
    """
    rows, columns = weight.shape
    if columns % BLOCK:
        raise ValueError(f'NVFP4 needs a multiple of {BLOCK} columns, got {columns}')
    scale = np.float32(np.abs(weight).max()) / np.float32(E2M1_MAX * E4M3_MAX)
    blocks = weight.astype(np.float32).reshape(rows, columns // BLOCK, BLOCK)
    with np.errstate(divide='ignore', invalid='ignore'):
        quotient = np.abs(blocks).max(axis=-1) / (np.float32(E2M1_MAX) * scale)
    quotient = np.where((quotient == 0) | (scale == 0), np.float32(1), quotient)
    block_scale = encode_e4m3(np.clip(quotient, np.float32(E4M3_MIN_SUBNORMAL), np.float32(E4M3_MAX)))
    step = (E4M3_VALUES[block_scale] * scale)[..., None]
    with np.errstate(divide='ignore', invalid='ignore'):
        scaled = np.where(step == 0, np.float32(0), blocks / step)
    return Nvfp4(pack_nibbles(encode_e2m1(scaled).reshape(rows, columns)), block_scale, scale)


def quantize_activation(x: np.ndarray, input_scale: np.float32) -> tuple[np.ndarray, np.ndarray]:
    """W4A4 activations with exact division: float32 [tokens, in] to (codes [tokens, in], e4m3 bytes [tokens, in / 16]).

    G = 1 / input_scale; block scale = e4m3(G · (amax · (1 / 6))), saturating at 448;
    code = e2m1(x · (1 / (float(block scale) · (1 / G)))), and every code is a zero where the block scale is 0.
    """
    one = np.float32(1)
    inverse = one / np.float32(input_scale)
    blocks = x.astype(np.float32).reshape(x.shape[0], -1, BLOCK)
    amax = np.abs(blocks).max(axis=-1)
    block_scale = encode_e4m3(inverse * (amax * (one / np.float32(6))))
    step = E4M3_VALUES[block_scale] * (one / inverse)
    with np.errstate(divide='ignore'):
        factor = np.where(step == 0, np.float32(0), one / step)
    codes = encode_e2m1((blocks * factor[..., None]).astype(np.float32))
    return codes.reshape(x.shape), block_scale


def quantize_fp8(weight: np.ndarray) -> tuple[np.ndarray, np.float32]:
    """Per-tensor FP8: (e4m3 bytes of the same shape, weight_scale = amax / 448, or 1 for a matrix of zeros)."""
    scale = np.float32(np.abs(weight).max()) / np.float32(E4M3_MAX)
    scale = np.float32(1) if scale == 0 else scale
    return encode_e4m3(weight.astype(np.float32) / scale), scale
