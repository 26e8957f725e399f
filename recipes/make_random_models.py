"""Write checkpoints of random shapes with goldens, laid out like the micro fixtures, for shapes that no fixture has.

Pattern, head and group counts, widths, routing, biases, prompt lengths, storage format and sharding are all drawn.

    python recipes/make_random_models.py <out folder> [--count N] [--seed S]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from make_micro_fixtures import make
from micro_fixtures import CURRENT_TYPES, LEGACY_TYPES, Fixture, store_bf16, store_fused, type_lists, with_keys
from micro_formats import (
    BF16_RELEASE,
    compressed_tensors_config,
    compressed_tensors_nvfp4,
    convert,
    modelopt_fp8,
    modelopt_nvfp4,
    sidecar,
    unlisted,
)
from micro_model import micro_config

HEAD_ONLY = ['lm_head', '*.conv1d']


def random_config(random: np.random.Generator, unit: int) -> dict[str, Any]:
    """A config.json whose input widths are multiples of `unit`."""

    def size(low: int, high: int, step: int = 1) -> int:
        return int(random.integers(low, high + 1)) * step

    groups, kv_heads, routing_groups = size(1, 4), size(1, 3), size(1, 3)
    experts = routing_groups * size(2, 5)
    topk_groups = size(1, routing_groups)
    head_dims = [unit] if unit > 1 else [4, 8, 12, 20, 24]
    return micro_config(
        hybrid_override_pattern=''.join(random.choice(list('MME*-'), size(1, 7))),
        vocab_size=size(40, 150),
        hidden_size=size(1, 5, unit) if unit > 1 else size(17, 70),
        mamba_num_heads=groups * size(1, 4),
        mamba_head_dim=int(random.choice(head_dims)),
        n_groups=groups,
        ssm_state_size=size(3, 40),
        conv_kernel=size(2, 5),
        num_attention_heads=kv_heads * size(1, 4),
        num_key_value_heads=kv_heads,
        head_dim=int(random.choice(head_dims)),
        intermediate_size=size(1, 4, unit) if unit > 1 else size(9, 60),
        moe_intermediate_size=size(1, 3, unit) if unit > 1 else size(5, 40),
        moe_shared_expert_intermediate_size=size(1, 4, unit) if unit > 1 else size(5, 60),
        n_routed_experts=experts,
        num_experts_per_tok=size(1, min(6, experts // routing_groups * topk_groups)),
        n_group=routing_groups,
        topk_group=topk_groups,
        norm_topk_prob=bool(random.random() < 0.7),
        routed_scaling_factor=float(random.choice([1.0, 1.5, 2.5])),
        use_bias=bool(random.random() < 0.3),
        mlp_bias=bool(random.random() < 0.3),
        attention_bias=bool(random.random() < 0.2),
        use_conv_bias=bool(random.random() < 0.8),
        tie_word_embeddings=bool(random.random() < 0.2),
        layer_norm_epsilon=float(random.choice([1e-5, 1e-6, 1e-3])),
    )


def random_fixture(number: int, seed: int) -> Fixture:
    """Fixture `number` of a seed."""
    random = np.random.default_rng([seed, number])
    kind = str(random.choice(['bf16', 'fused', 'nvfp4', 'compressed', 'fp8']))
    config = random_config(random, 16 if kind in ('nvfp4', 'compressed') else 1)
    stores = {
        'bf16': store_bf16,
        'fused': store_fused,
        'nvfp4': lambda weights: convert(weights, BF16_RELEASE, unlisted(HEAD_ONLY, modelopt_nvfp4)),
        'compressed': lambda weights: convert(weights, BF16_RELEASE, unlisted(HEAD_ONLY, compressed_tensors_nvfp4)),
        'fp8': lambda weights: convert(weights, BF16_RELEASE, unlisted(HEAD_ONLY, modelopt_fp8)),
    }
    edits = [with_keys(), type_lists('layers_block_type', LEGACY_TYPES), type_lists('layer_types', CURRENT_TYPES)]
    edit = edits[int(random.integers(3))]
    if kind == 'compressed':
        edit = with_keys(quantization_config=compressed_tensors_config(['lm_head', 're:.*conv1d']))
    algorithm = {'nvfp4': 'NVFP4', 'fp8': 'FP8'}.get(kind)
    return Fixture(
        f'{kind}-{seed}-{number}',
        int(random.integers(1, 10**6)),
        config,
        store=stores[kind],
        edit_config=edit,
        sidecar=sidecar(algorithm, kv_cache_quant_algo='FP8', exclude_modules=HEAD_ONLY) if algorithm else None,
        shards=int(random.integers(1, 4)),
        index=bool(random.random() < 0.5),
        prompts=(int(random.integers(1, 12)), int(random.choice([63, 64, 65, 127, 128, 129, 131, 200, 257, 300]))),
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('out', type=Path)
    parser.add_argument('--count', type=int, default=20)
    parser.add_argument('--seed', type=int, default=1)
    args = parser.parse_args()
    for number in range(args.count):
        fixture = random_fixture(number, args.seed)
        print(fixture.config['hybrid_override_pattern'], end='  ')
        make(args.out, fixture)


if __name__ == '__main__':
    main()
