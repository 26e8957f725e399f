"""Compare two checkpoints tensor by tensor, byte for byte, whatever their sharding. Exits 1 where they differ.

python recipes/compare_checkpoints.py <folder> <folder>
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from safetensors_io import read_folder


def differences(ours: Path, theirs: Path) -> list[str]:
    """One line for each tensor that is missing or differs in dtype, shape or bytes."""
    first, second = read_folder(ours), read_folder(theirs)
    lines = [f'{name} is only in {ours}' for name in first if name not in second]
    lines += [f'{name} is only in {theirs}' for name in second if name not in first]
    for name, tensor in first.items():
        other = second.get(name)
        if other is None:
            continue
        if (tensor.dtype, tensor.data.shape) != (other.dtype, other.data.shape):
            lines.append(f'{name}: {tensor.dtype} {tensor.data.shape} and {other.dtype} {other.data.shape}')
        elif tensor.data.tobytes() != other.data.tobytes():
            count = int(np.sum(np.frombuffer(tensor.data.tobytes(), 'u1') != np.frombuffer(other.data.tobytes(), 'u1')))
            lines.append(f'{name}: {count} of {tensor.data.nbytes} bytes differ')
    return lines


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('ours', type=Path)
    parser.add_argument('theirs', type=Path)
    args = parser.parse_args()
    lines = differences(args.ours, args.theirs)
    print('\n'.join(lines[:50]) or 'equal')
    sys.exit(1 if lines else 0)


if __name__ == '__main__':
    main()
