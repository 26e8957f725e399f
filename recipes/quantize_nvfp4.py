"""Quantise a BF16 Nemotron-H checkpoint to NVFP4 in ModelOpt's layout, weights only, with the Nano release's recipe.

Stay in high precision: attention, the Mamba layers directly in front of an attention layer, embeddings, lm_head,
conv1d, the router, norms and the small Mamba vectors. Every other Linear becomes NVFP4. There is no `input_scale`:
nothing was calibrated.

    python recipes/quantize_nvfp4.py <bf16 folder> <out folder>
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np

from nvfp4 import quantize_nvfp4
from reference_config import load_config, pattern_of
from safetensors_io import Tensor, f32, natural_order, read_folder, write_file

COPIED = ('config.json', 'generation_config.json', 'tokenizer.json', 'tokenizer_config.json', 'chat_template.jinja')


def excluded_modules(pattern: str) -> list[str]:
    """Modules of the recipe that stay in high precision although they are Linear or convolution modules."""
    modules = ['lm_head']
    for layer, kind in enumerate(pattern):
        prefix = f'backbone.layers.{layer}.mixer.'
        if kind == 'M' and pattern[layer + 1 : layer + 2] == '*':
            modules += [prefix + 'in_proj', prefix + 'out_proj']
        if kind == '*':
            modules += [prefix + name for name in ('q_proj', 'k_proj', 'v_proj', 'o_proj')]
        if kind == 'M':
            modules.append(prefix + 'conv1d')
    return modules


def is_quantized(name: str, tensor: Tensor, excluded: set[str]) -> bool:
    """Whether the recipe quantises this tensor: the two-dimensional weight of a projection that is not excluded."""
    module, _, leaf = name.rpartition('.')
    return leaf == 'weight' and module.endswith('_proj') and module not in excluded and tensor.data.ndim == 2


def quantize(tensors: dict[str, Tensor], excluded: set[str]) -> dict[str, Tensor]:
    """The tensors of the quantised checkpoint, scales behind their weight, in natural order of the modules."""
    result: dict[str, Tensor] = {}
    for name in natural_order(tensors):
        tensor = tensors[name]
        if not is_quantized(name, tensor, excluded):
            result[name] = tensor
            continue
        matrix = quantize_nvfp4(tensor.to_float32())
        result[name] = Tensor('U8', matrix.packed)
        result[name + '_scale'] = Tensor('F8_E4M3', matrix.block_scale)
        result[name + '_scale_2'] = f32(matrix.scale)
    return result


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', type=Path)
    parser.add_argument('out', type=Path)
    args = parser.parse_args()
    excluded = excluded_modules(pattern_of(load_config(args.source)))
    args.out.mkdir(parents=True, exist_ok=False)
    source = read_folder(args.source)
    result = quantize(source, set(excluded))
    size = write_file(args.out / 'model.safetensors', result)
    for name in COPIED:
        if (args.source / name).exists():
            shutil.copyfile(args.source / name, args.out / name)
    recipe = {
        'producer': {'name': 'nibblet', 'version': '0.0.0'},
        'quantization': {
            'quant_algo': 'NVFP4',
            'kv_cache_quant_algo': 'FP8',
            'group_size': 16,
            'exclude_modules': excluded,
        },
    }
    (args.out / 'hf_quant_config.json').write_text(json.dumps(recipe, indent=2) + '\n')
    matrices = sum(name.endswith('_scale_2') for name in result)
    before = sum(np.prod(tensor.data.shape, dtype=int) for tensor in source.values())
    print(f'{matrices} matrices in NVFP4, {len(result)} tensors, {size} bytes for {before} values')


if __name__ == '__main__':
    main()
