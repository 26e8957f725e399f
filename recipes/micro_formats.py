"""The storage formats of the micro fixtures: from float32 weights to the tensors and configurations of a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from nvfp4 import encode_e4m3, quantize_fp8, quantize_nvfp4
from safetensors_io import Tensor, bf16, f32

PRODUCER = {'name': 'modelopt', 'version': '0.29.0'}
VECTORS = ('A_log', 'D', 'dt_bias')
Tensors = dict[str, Tensor]


def store_plain(name: str, value: np.ndarray, float32: tuple[str, ...]) -> Tensor:
    """bfloat16, or float32 for names that end in one of `float32`."""
    return f32(value) if name.endswith(float32) else bf16(value)


# The two releases differ in the dtypes of the small tensors; a loader must take either.
BF16_RELEASE = ('A_log', '.D', 'e_score_correction_bias')
NVFP4_RELEASE = ('gate.weight', 'e_score_correction_bias')


def input_scale(name: str) -> np.float32:
    """A plausible calibrated multiplier, amax / 2688 with an amax between 4 and 8, that depends on the name only."""
    return np.float32((4 + sum(name.encode()) % 64 / 16) / 2688)


def modelopt_nvfp4(name: str, value: np.ndarray, with_input_scale: bool = True) -> Tensors:
    """`<module>.weight` in ModelOpt's NVFP4."""
    matrix = quantize_nvfp4(value)
    result = {
        name: Tensor('U8', matrix.packed),
        f'{name}_scale': Tensor('F8_E4M3', matrix.block_scale),
        f'{name}_scale_2': f32(matrix.scale),
    }
    if with_input_scale:
        result[name.replace('.weight', '.input_scale')] = f32(input_scale(name))
    return result


def modelopt_fp8(name: str, value: np.ndarray) -> Tensors:
    """`<module>.weight` in ModelOpt's per-tensor FP8."""
    codes, scale = quantize_fp8(value)
    return {
        name: Tensor('F8_E4M3', codes),
        f'{name}_scale': f32(scale),
        name.replace('.weight', '.input_scale'): f32(input_scale(name) * np.float32(6)),
    }


def compressed_tensors_nvfp4(name: str, value: np.ndarray) -> Tensors:
    """`<module>.weight` as compressed-tensors nvfp4-pack-quantized: global scales are reciprocals of shape [1]."""
    matrix = quantize_nvfp4(value)
    module = name.removesuffix('.weight')
    return {
        f'{module}.weight_packed': Tensor('U8', matrix.packed),
        f'{module}.weight_scale': Tensor('F8_E4M3', matrix.block_scale),
        f'{module}.weight_global_scale': f32([np.float32(1) / matrix.scale]),
        f'{module}.input_global_scale': f32([np.float32(1) / input_scale(name)]),
    }


def compressed_tensors_fp8(name: str, value: np.ndarray) -> Tensors:
    """`<module>.weight` as compressed-tensors float-quantized by channel: one bfloat16 scale a row, [out, 1]."""
    scale = bf16(np.abs(value).max(axis=1, keepdims=True) / np.float32(448))
    return {name: Tensor('F8_E4M3', encode_e4m3(value / scale.to_float32())), f'{name}_scale': scale}


def is_linear(name: str) -> bool:
    """Whether a tensor is the weight of a Linear (the router is a bare parameter, convolution and tables are not)."""
    return name.endswith('_proj.weight') or name == 'lm_head.weight'


def convert(
    weights: dict[str, np.ndarray],
    float32: tuple[str, ...],
    choose: Callable[[str], Callable[[str, np.ndarray], Tensors] | None] = lambda module: None,
) -> Tensors:
    """Store every weight; `choose(module)` names the format of a Linear, None keeps it plain."""
    tensors: Tensors = {}
    for name, value in weights.items():
        store = choose(name.removesuffix('.weight')) if is_linear(name) else None
        tensors |= store(name, value) if store else {name: store_plain(name, value, float32)}
    return tensors


def unlisted(patterns: list[str], store: Callable[[str, np.ndarray], Tensors]) -> Callable[[str], Any]:
    """Format `store` for each module that no exclude entry matches (exact, `*` wildcard or `re:` expression)."""

    def matches(module: str, pattern: str) -> bool:
        if pattern.startswith('re:'):
            return re.match(pattern[3:], module) is not None
        return fnmatchcase(module, pattern)

    return lambda module: None if any(matches(module, pattern) for pattern in patterns) else store


def sidecar(algorithm: str, **keys: object) -> dict[str, Any]:
    """hf_quant_config.json of ModelOpt."""
    return {'producer': PRODUCER, 'quantization': {'quant_algo': algorithm, **keys}}


def embedded_modelopt(ignore: list[str]) -> dict[str, Any]:
    """quantization_config of ModelOpt inside config.json."""
    numbers = {'dynamic': False, 'num_bits': 4, 'type': 'float', 'group_size': 16}
    return {
        'quant_method': 'modelopt',
        'quant_algo': 'NVFP4',
        'kv_cache_scheme': {'dynamic': False, 'num_bits': 8, 'type': 'float'},
        'config_groups': {'group_0': {'input_activations': numbers, 'weights': numbers, 'targets': ['Linear']}},
        'ignore': ignore,
        'producer': PRODUCER,
    }


def compressed_tensors_config(ignore: list[str]) -> dict[str, Any]:
    """quantization_config of compressed-tensors inside config.json, for NVFP4."""
    numbers = {'num_bits': 4, 'type': 'float', 'strategy': 'tensor_group', 'group_size': 16, 'symmetric': True}
    weights = {**numbers, 'dynamic': False, 'observer': 'minmax', 'actorder': None, 'block_structure': None}
    activations = {**numbers, 'dynamic': 'local', 'observer': 'minmax', 'actorder': None}
    return _compressed_tensors('nvfp4-pack-quantized', weights, activations, ignore)


def compressed_tensors_fp8_config(ignore: list[str]) -> dict[str, Any]:
    """quantization_config of compressed-tensors inside config.json, for FP8 by channel with dynamic activations."""
    numbers = {'num_bits': 8, 'type': 'float', 'symmetric': True, 'group_size': None}
    weights = {**numbers, 'strategy': 'channel', 'dynamic': False, 'observer': 'minmax'}
    activations = {**numbers, 'strategy': 'token', 'dynamic': True, 'observer': None}
    return _compressed_tensors('float-quantized', weights, activations, ignore)


def _compressed_tensors(
    container: str, weights: dict[str, Any], activations: dict[str, Any], ignore: list[str]
) -> dict[str, Any]:
    return {
        'quant_method': 'compressed-tensors',
        'format': container,
        'quantization_status': 'compressed',
        'config_groups': {
            'group_0': {
                'targets': ['Linear'],
                'weights': weights,
                'input_activations': activations,
                'output_activations': None,
            }
        },
        'global_compression_ratio': None,
        'ignore': ignore,
        'kv_cache_scheme': None,
    }
