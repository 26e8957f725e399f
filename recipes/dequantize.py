"""Any checkpoint of the family as float32 arrays under the release's tensor names."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nvfp4 import Nvfp4
from safetensors_io import Tensor, read_folder

# Companions of a quantised weight, and scales that only other number formats of activations and cache use.
COMPANIONS = ('weight_scale', 'weight_scale_2', 'weight_global_scale', 'input_scale', 'input_global_scale')
CACHE_SCALES = ('k_scale', 'v_scale')


def _nvfp4(packed: Tensor, block_scale: Tensor, scale: np.float32) -> np.ndarray:
    if (packed.dtype, block_scale.dtype) != ('U8', 'F8_E4M3'):
        raise ValueError(f'NVFP4 needs U8 and F8_E4M3, got {packed.dtype} and {block_scale.dtype}')
    return Nvfp4(packed.data, block_scale.data, scale).dequantize()


def dequantize(tensors: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """float32 arrays by name from ModelOpt NVFP4 and FP8 (per tensor or row), compressed-tensors NVFP4 or floats."""
    result: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        module, _, leaf = name.rpartition('.')
        if leaf in COMPANIONS or leaf in CACHE_SCALES:
            continue
        scale = tensors.get(f'{module}.weight_scale')
        if leaf == 'weight_packed':
            global_scale = tensors[f'{module}.weight_global_scale'].data.reshape(())
            result[f'{module}.weight'] = _nvfp4(tensor, scale, np.float32(1) / np.float32(global_scale))
        elif leaf == 'weight' and tensor.dtype == 'U8':
            result[name] = _nvfp4(tensor, scale, np.float32(tensors[f'{module}.weight_scale_2'].data))
        elif leaf == 'weight' and tensor.dtype == 'F8_E4M3':
            rows = scale.to_float32().reshape(-1, 1)
            result[name] = tensor.to_float32() * rows
        else:
            result[name] = tensor.to_float32()
    return result


def load_float32(folder: Path) -> dict[str, np.ndarray]:
    """Read and dequantise a checkpoint folder."""
    return dequantize(read_folder(folder))
