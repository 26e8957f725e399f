"""Write goldens for the bundled NVFP4 model: transformers in float32 on its dequantised weights.

The prompts are those of the teacher's goldens. Tensors, for prompt N of n tokens:

    N.input_ids [n] I32, N.argmax [n] I32, N.margin [n] F16 (best minus second best logit, rounded down),
    N.top_ids [k, 64] I32 and N.top_logits [k, 64] F32 of the last k = min(n, 8) positions, largest first,
    N.greedy [m] I32 up to and including a stop id, N.greedy_margin [m] F16.

    python recipes/make_tiny_goldens.py <nvfp4 folder> <teacher's goldens.safetensors> [--out <file>]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from reference import Reference, Result, relative_l2
from safetensors_io import Tensor, f32, i32, read_file, write_file

TOP = 64
POSITIONS = 8
LONGEST_ANSWER = 48


def f16_down(values: np.ndarray) -> Tensor:
    """Non-negative float32 to float16, rounded towards zero, so that a stored margin never exceeds the true one."""
    half = np.minimum(values, np.float32(65504)).astype(np.float16)
    return Tensor('F16', np.where(half.astype(np.float32) > values, np.nextafter(half, np.float16(0)), half))


def golden_tensors(prompt: int, ids: np.ndarray, result: Result) -> dict[str, Tensor]:
    """The stored tensors of one prompt."""
    logits = result.logits[-POSITIONS:]
    top = np.argsort(-logits, axis=-1, kind='stable')[:, :TOP]
    return {
        f'{prompt}.input_ids': i32(ids),
        f'{prompt}.argmax': i32(result.argmax),
        f'{prompt}.margin': f16_down(result.margin),
        f'{prompt}.top_ids': i32(top),
        f'{prompt}.top_logits': f32(np.take_along_axis(logits, top, axis=-1)),
        f'{prompt}.greedy': i32(result.greedy),
        f'{prompt}.greedy_margin': f16_down(result.greedy_margin),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', type=Path)
    parser.add_argument('teacher_goldens', type=Path)
    parser.add_argument('--out', type=Path, help='default: goldens.safetensors in the folder')
    args = parser.parse_args()
    reference = Reference.open(args.folder)
    teacher = read_file(args.teacher_goldens)
    tensors: dict[str, Tensor] = {}
    for prompt in range(sum(name.endswith('.input_ids') for name in teacher)):
        ids = teacher[f'{prompt}.input_ids'].data
        result = reference.run(ids, LONGEST_ANSWER)
        tensors |= golden_tensors(prompt, ids, result)
        old = teacher[f'{prompt}.logits'].data
        agreement = (result.argmax == teacher[f'{prompt}.argmax'].data).mean()
        distance = relative_l2(result.logits[-len(old) :], old)
        print(
            f'{prompt:3d} {len(ids):5d} tokens  against the teacher: {distance:.4f} relative L2, argmax {agreement:.4f}'
        )
    out = args.out or args.folder / 'goldens.safetensors'
    write_file(out, tensors)
    print(f'{out.stat().st_size} bytes')


if __name__ == '__main__':
    main()
