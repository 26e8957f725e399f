"""Write test/fixtures/nvfp4-vectors.json: what the native quantisers must give, by the numpy implementation.

    weights:     {name, rows, columns, values, codes, blockScales, scale}           nvfp4.quantize_nvfp4
    activations: {name, tokens, columns, inputScale, values, codes, blockScales}    nvfp4.quantize_activation

Matrices are row-major. Numbers are float32, written as the shortest decimals that read back to the same float32.
`codes` is the hex of packed bytes (low nibble = even column), `blockScales` the hex of e4m3 bytes.

    python recipes/quantization_vectors.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from nvfp4 import BLOCK, E2M1_VALUES, E4M3_VALUES, pack_nibbles, quantize_activation, quantize_nvfp4

OUT = Path(__file__).resolve().parent.parent / 'test' / 'fixtures' / 'nvfp4-vectors.json'


def numbers(values: np.ndarray) -> list[float]:
    """float32 values as short decimals that read back exactly."""
    short = [float(str(value)) for value in values.ravel()]
    if not np.array_equal(np.array(short, np.float32).view(np.uint32), values.ravel().view(np.uint32)):
        raise ValueError('a decimal does not read back to its float32')
    return short


def weight_case(name: str, values: np.ndarray) -> dict[str, Any]:
    """One case of weight quantisation; values [rows, columns] float32."""
    values = values.astype(np.float32)
    matrix = quantize_nvfp4(values)
    return {
        'name': name,
        'rows': values.shape[0],
        'columns': values.shape[1],
        'values': numbers(values),
        'codes': matrix.packed.tobytes().hex(),
        'blockScales': matrix.block_scale.tobytes().hex(),
        'scale': numbers(np.array([matrix.scale]))[0],
    }


def activation_case(name: str, values: np.ndarray, input_scale: float) -> dict[str, Any]:
    """One case of activation quantisation; values [tokens, columns] float32."""
    values = values.astype(np.float32)
    codes, block_scale = quantize_activation(values, np.float32(input_scale))
    return {
        'name': name,
        'tokens': values.shape[0],
        'columns': values.shape[1],
        'inputScale': numbers(np.array([input_scale], np.float32))[0],
        'values': numbers(values),
        'codes': pack_nibbles(codes).tobytes().hex(),
        'blockScales': block_scale.tobytes().hex(),
    }


def bfloat16(values: np.ndarray) -> np.ndarray:
    """Cut to values that bfloat16 holds."""
    return (values.astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)


def one_block(*values: float) -> np.ndarray:
    """A block that starts with these values, zeros behind."""
    block = np.zeros(BLOCK, np.float32)
    block[: len(values)] = values
    return block


def midpoint_blocks() -> np.ndarray:
    """Blocks of step 1: every midpoint of e2m1, its two float32 neighbours, and their negatives, each beside a 6."""
    middle = (E2M1_VALUES[1:] + E2M1_VALUES[:-1]) / 2
    near = np.stack([middle, np.nextafter(middle, np.float32(0)), np.nextafter(middle, np.float32(9))]).astype(
        np.float32
    )
    flat = np.concatenate([near.ravel(), -near.ravel()])
    return np.stack([one_block(6, *part) for part in np.array_split(flat, 3)])


def scale_midpoint_blocks(factor: np.float32) -> np.ndarray:
    """Blocks whose scale lies halfway between two e4m3 values, for every seventh pair and the two ends."""
    pairs = sorted({*range(0, 126, 7), 1, 2, 124, 125})
    middle = [(E4M3_VALUES[pair] + E4M3_VALUES[pair + 1]) / 2 for pair in pairs if pair != 0]
    return np.stack([one_block(factor * value, -factor * value / 3, factor * value / 5) for value in middle])


def with_unit_scale(blocks: np.ndarray) -> np.ndarray:
    """Blocks [n, 16] as a matrix [1, ...] whose tensor scale is exactly 1, through a leading 2688."""
    return np.concatenate([one_block(2688), *blocks])[None]


def weight_cases(random: np.random.Generator) -> list[dict[str, Any]]:
    """All cases of weight quantisation."""
    normal = random.standard_normal((3, 48)) * 0.05
    wide = random.standard_normal((2, 64)) * np.exp(random.uniform(-12, 2, (2, 64)))
    holes = random.standard_normal((2, 48))
    holes[0, 16:32] = 0
    holes[1, :32] = 0
    tiny = np.concatenate([one_block(1), one_block(1e-7, -1e-8), one_block(3e-4, -1e-4), one_block(1e-38, -1e-40)])
    signs = with_unit_scale(np.stack([one_block(6, -0.1, -0.25, -0.0, 0.0, 0.1, -6, -0.26, -5.9), one_block(-0.0)]))
    return [
        weight_case('random', normal),
        weight_case('random bfloat16', bfloat16(normal * 3)),
        weight_case('wide range', wide),
        weight_case('blocks of zeros', holes),
        weight_case('all zeros', np.zeros((1, 32))),
        weight_case('values below the smallest block scale', tiny[None]),
        weight_case('negatives that round to minus zero', signs),
        weight_case('ties of e2m1', with_unit_scale(midpoint_blocks())),
        weight_case('ties of the block scale', with_unit_scale(scale_midpoint_blocks(np.float32(6)))),
        weight_case('largest float32', np.stack([one_block(3.4028235e38, -3.4028235e38, 1e38), one_block(1e37, 1e30)])),
        weight_case('subnormal tensor scale', random.standard_normal((1, 32)) * 1e-36),
        weight_case('tensor scale that underflows to zero', np.full((1, 16), 1e-42)),
    ]


def activation_cases(random: np.random.Generator) -> list[dict[str, Any]]:
    """All cases of activation quantisation with exact division."""
    normal = random.standard_normal((3, 48)) * 2
    sparse = np.maximum(random.standard_normal((2, 48)), 0) ** 2  # as after relu²
    blocks = np.stack(
        [one_block(0), one_block(1e-6), one_block(6 * 2**-10), one_block(6.1 * 2**-10, -0.001), one_block(-0.0)]
    )
    return [
        activation_case('random', normal, 7.5 / 2688),
        activation_case('random bfloat16', bfloat16(normal), 6.1 / 2688),
        activation_case('after relu squared', sparse, 12.3 / 2688),
        activation_case('beyond the calibrated range', normal * 40, 5 / 2688),
        activation_case('far below the calibrated range', normal * 1e-4, 5 / 2688),
        activation_case('zeros and scales that round to zero', blocks, 1),
        activation_case('ties of e2m1', midpoint_blocks(), 1),
        activation_case('ties of the block scale', scale_midpoint_blocks(np.float32(6)), 1),
        activation_case('saturated scale', np.stack([one_block(2688, -2600, 3), one_block(1e9, -1e9, 2689, 1)]), 1),
        activation_case('scale that is no power of two', midpoint_blocks() * np.float32(0.3), 0.3),
    ]


def main() -> None:
    """Write the file."""
    random = np.random.default_rng(20260)
    content = {'weights': weight_cases(random), 'activations': activation_cases(random)}
    lines = [
        f' "{kind}": [\n' + ',\n'.join(f'  {json.dumps(case)}' for case in cases) + '\n ]'
        for kind, cases in content.items()
    ]
    OUT.write_text('{\n' + ',\n'.join(lines) + '\n}\n')
    print(f'{sum(map(len, content.values()))} cases, {OUT.stat().st_size} bytes')


if __name__ == '__main__':
    main()
