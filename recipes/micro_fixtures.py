"""What each micro fixture is: its shape, its storage format and its config flavour."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from micro_formats import (
    BF16_RELEASE,
    NVFP4_RELEASE,
    Tensors,
    compressed_tensors_config,
    compressed_tensors_fp8,
    compressed_tensors_fp8_config,
    compressed_tensors_nvfp4,
    convert,
    embedded_modelopt,
    modelopt_fp8,
    modelopt_nvfp4,
    sidecar,
    unlisted,
)
from micro_model import micro_config, random_weights
from reference import Reference
from safetensors_io import bf16, f32

Weights = dict[str, np.ndarray]


def store_bf16(weights: Weights) -> Tensors:
    """Everything in bfloat16 but what the BF16 release keeps in float32."""
    return convert(weights, BF16_RELEASE)


@dataclass(frozen=True)
class Fixture:
    """One checkpoint folder. `store` makes the tensors; `save_pretrained`, where given, writes the whole folder."""

    name: str
    seed: int
    config: dict[str, Any]
    store: Callable[[Weights], Tensors] = store_bf16
    edit_config: Callable[[dict[str, Any]], dict[str, Any]] = lambda config: config
    sidecar: dict[str, Any] | None = None
    shards: int = 1
    index: bool = False
    prompts: tuple[int, ...] = (7, 33)
    save_pretrained: Callable[[Path, dict[str, Any], Weights], None] | None = field(default=None)


def type_lists(key: str, names: dict[str, str]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Replace the pattern string by a list of layer types and write infinity as {"__float__": "Infinity"}."""

    def edit(config: dict[str, Any]) -> dict[str, Any]:
        config[key] = [names[letter] for letter in config.pop('hybrid_override_pattern')]
        config.pop('num_hidden_layers')
        config['time_step_limit'] = [0.0, {'__float__': 'Infinity'}]
        return config

    return edit


def with_keys(**keys: object) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Add or replace keys of config.json; a value of None removes the key."""
    return lambda config: {key: value for key, value in (config | keys).items() if value is not None}


def transformers_save(dtype: torch.dtype, shard_size: str) -> Callable[[Path, dict[str, Any], Weights], None]:
    """The folder as transformers itself writes it."""

    def save(folder: Path, config: dict[str, Any], weights: Weights) -> None:
        model = Reference(config, weights).model
        biases = {name: value.clone() for name, value in model.named_buffers()}
        model.to(dtype)
        for name, value in biases.items():  # transformers itself keeps the routers' correction biases in float32
            model.get_submodule(name.rpartition('.')[0]).e_score_correction_bias = value
        model.config.dtype = dtype
        model.config.architectures = ['NemotronHForCausalLM']
        model.save_pretrained(folder, max_shard_size=shard_size)

    return save


def store_fused(weights: Weights) -> Tensors:
    """bfloat16 with the experts of a layer in one tensor: `experts.up_proj` [E, width, hidden], `experts.down_proj`."""
    tensors: Tensors = {}
    stacks: dict[str, list[np.ndarray]] = {}
    for name, value in weights.items():
        if '.experts.' in name:
            layer, _, rest = name.partition('.experts.')
            stacks.setdefault(f'{layer}.experts.{rest.split(".")[1]}', []).append(value)
        else:
            tensors[name] = f32(value) if name.endswith(BF16_RELEASE) else bf16(value)
    return tensors | {name: bf16(np.stack(values)) for name, values in stacks.items()}


def with_cache_scales(tensors: Tensors) -> Tensors:
    """Add FP8 cache scales k_scale and v_scale to every attention layer (exact mode does not use them)."""
    result = dict(tensors)
    for name in tensors:
        if name.endswith(('k_proj.weight', 'v_proj.weight')):
            result[name.replace('.weight', f'.{name[-13]}_scale')] = f32(0.0625 if 'k_proj' in name else 0.03125)
    return result


def mixed_layers(weights: Weights) -> dict[str, dict[str, Any]]:
    """quantized_layers of the mixed fixture: Mamba in FP8, experts in NVFP4, shared experts and head in W4A16_NVFP4."""
    layers: dict[str, dict[str, Any]] = {}
    for name in weights:
        module = name.removesuffix('.weight')
        if module.endswith(('in_proj', 'out_proj')):
            layers[module] = {'quant_algo': 'FP8'}
        elif '.experts.' in module:
            layers[module] = {'quant_algo': 'NVFP4', 'group_size': 16}
        elif '.shared_experts.' in module or module == 'lm_head':
            layers[module] = {'quant_algo': 'W4A16_NVFP4', 'group_size': 16}
    return layers


def store_mixed(weights: Weights) -> Tensors:
    """The tensors that `mixed_layers` describes."""
    layers = mixed_layers(weights)
    stores = {
        'FP8': modelopt_fp8,
        'NVFP4': modelopt_nvfp4,
        'W4A16_NVFP4': lambda name, value: modelopt_nvfp4(name, value, with_input_scale=False),
    }
    return convert(
        weights, NVFP4_RELEASE, lambda module: stores[layers[module]['quant_algo']] if module in layers else None
    )


LEGACY_TYPES = {'M': 'mamba', 'E': 'moe', '*': 'attention', '-': 'mlp'}
CURRENT_TYPES = {'M': 'linear_attention', 'E': 'moe', '*': 'full_attention', '-': 'mlp'}

QUANTIZED = micro_config(
    hybrid_override_pattern='MEM*E',
    hidden_size=48,
    mamba_head_dim=8,
    n_groups=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    n_routed_experts=4,
    num_experts_per_tok=2,
    moe_intermediate_size=32,
)
NANO_EXCLUDES = [
    'lm_head',
    *(f'backbone.layers.2.mixer.{name}' for name in ('in_proj', 'out_proj')),
    *(f'backbone.layers.3.mixer.{name}_proj' for name in 'qkvo'),
    *(f'backbone.layers.{layer}.mixer.conv1d' for layer in (0, 2)),
]
WILDCARDS = ['lm_head', 'backbone.layers.3.mixer.*', 'backbone.layers.2.mixer.in_proj', '*.conv1d', '*shared_experts*']
EXPRESSIONS = ['lm_head', 're:.*\\.mixer\\.[qkvo]_proj$', 're:.*conv1d.*', 'backbone.layers.2.mixer.out_proj']

FIXTURES = [
    Fixture('bf16-basic', 100, micro_config(n_routed_experts=6, mamba_head_dim=12, intermediate_size=24)),
    Fixture(
        'bf16-odd',
        200,
        micro_config(
            hybrid_override_pattern='EM*',
            hidden_size=28,
            vocab_size=67,
            intermediate_size=20,
            mamba_num_heads=9,
            mamba_head_dim=20,
            n_groups=3,
            ssm_state_size=24,
            n_routed_experts=11,
            num_experts_per_tok=3,
            moe_intermediate_size=20,
            moe_shared_expert_intermediate_size=28,
            num_attention_heads=6,
            num_key_value_heads=3,
            head_dim=20,
        ),
        edit_config=type_lists('layers_block_type', LEGACY_TYPES),
        shards=2,
        prompts=(131, 300),
    ),
    Fixture(
        'bf16-dense',
        300,
        micro_config(
            hybrid_override_pattern='-M*E-',
            conv_kernel=3,
            mamba_num_heads=3,
            mamba_head_dim=20,
            n_groups=1,
            ssm_state_size=20,
            num_attention_heads=3,
            num_key_value_heads=1,
            use_conv_bias=False,
            use_bias=True,
            mlp_bias=True,
            n_group=2,
            topk_group=1,
            norm_topk_prob=False,
            routed_scaling_factor=1.5,
            tie_word_embeddings=True,
        ),
        shards=2,
        index=True,
        prompts=(1, 40),
    ),
    Fixture(
        'bf16-attention-bias',
        400,
        micro_config(hybrid_override_pattern='*-M', attention_bias=True, n_group=1, intermediate_size=40),
        edit_config=type_lists('layer_types', CURRENT_TYPES),
        prompts=(2, 19),
    ),
    Fixture(
        'bf16-fused-experts',
        500,
        micro_config(hybrid_override_pattern='ME*E', n_routed_experts=6, n_group=3, topk_group=2),
        store=store_fused,
    ),
    Fixture(
        'tf5-bf16',
        600,
        micro_config(hybrid_override_pattern='M*E-', mamba_num_heads=6, n_groups=3),
        save_pretrained=transformers_save(torch.bfloat16, '1GB'),
    ),
    Fixture(
        'tf5-f32',
        700,
        micro_config(
            hybrid_override_pattern='E*M',
            n_routed_experts=4,
            num_experts_per_tok=1,
            mamba_num_heads=2,
            n_groups=1,
            vocab_size=48,
            hidden_size=24,
        ),
        save_pretrained=transformers_save(torch.float32, '40KB'),
        prompts=(3, 140),
    ),
    Fixture(
        'nvfp4-modelopt',
        800,
        QUANTIZED,
        store=lambda weights: convert(weights, NVFP4_RELEASE, unlisted(NANO_EXCLUDES, modelopt_nvfp4)),
        sidecar=sidecar('NVFP4', kv_cache_quant_algo='FP8', group_size=16, exclude_modules=NANO_EXCLUDES),
        edit_config=with_keys(time_step_limit=None),
        prompts=(9, 150),
    ),
    Fixture(
        'nvfp4-embedded-wildcards',
        900,
        QUANTIZED,
        store=lambda weights: with_cache_scales(
            convert(weights, NVFP4_RELEASE, unlisted(WILDCARDS, modelopt_nvfp4)),
        ),
        edit_config=with_keys(quantization_config=embedded_modelopt(WILDCARDS)),
    ),
    Fixture(
        'nvfp4-fp8-mixed',
        1000,
        QUANTIZED,
        store=store_mixed,
        sidecar=sidecar(
            'MIXED_PRECISION',
            kv_cache_quant_algo=None,
            exclude_modules=[],
            quantized_layers=mixed_layers(random_weights(QUANTIZED, 0)),
        ),
    ),
    Fixture(
        'fp8-modelopt',
        1100,
        micro_config(hybrid_override_pattern='M*E', hidden_size=40, moe_intermediate_size=24),
        store=lambda weights: convert(weights, BF16_RELEASE, unlisted(['lm_head', '*.layers.1.*'], modelopt_fp8)),
        sidecar=sidecar('FP8', kv_cache_quant_algo='FP8', exclude_modules=['lm_head', '*.layers.1.*', '*conv1d']),
    ),
    Fixture(
        'nvfp4-compressed-tensors',
        1200,
        QUANTIZED,
        store=lambda weights: convert(weights, BF16_RELEASE, unlisted(EXPRESSIONS, compressed_tensors_nvfp4)),
        edit_config=with_keys(quantization_config=compressed_tensors_config(EXPRESSIONS)),
        shards=3,
        index=True,
    ),
    Fixture(
        'fp8-compressed-tensors',
        1300,
        micro_config(hybrid_override_pattern='-M*', intermediate_size=40),
        store=lambda weights: convert(weights, BF16_RELEASE, unlisted(['lm_head', '*.conv1d'], compressed_tensors_fp8)),
        edit_config=with_keys(quantization_config=compressed_tensors_fp8_config(['lm_head', 're:.*conv1d'])),
    ),
]
