"""Seeded random Nemotron-H models of a few thousand weights, scaled so that every part of them matters.

Activations have unit size, time steps and decays are those of a trained model (some steps lie below transformers'
clamp), the router has real spread and a correction bias, and logits are well apart.
"""

from __future__ import annotations

from typing import Any

import numpy as np

BASE: dict[str, Any] = {
    'architectures': ['NemotronHForCausalLM'],
    'model_type': 'nemotron_h',
    'vocab_size': 64,
    'hidden_size': 32,
    'hybrid_override_pattern': 'MEM*-E',
    'num_attention_heads': 4,
    'num_key_value_heads': 2,
    'head_dim': 16,
    'attention_bias': False,
    'mamba_num_heads': 4,
    'mamba_head_dim': 16,
    'n_groups': 2,
    'ssm_state_size': 16,
    'conv_kernel': 4,
    'expand': 2,
    'chunk_size': 128,
    'use_conv_bias': True,
    'use_bias': False,
    'mamba_proj_bias': False,
    'mamba_hidden_act': 'silu',
    'mlp_hidden_act': 'relu2',
    'mlp_bias': False,
    'intermediate_size': 48,
    'n_routed_experts': 8,
    'n_shared_experts': 1,
    'num_experts_per_tok': 3,
    'moe_intermediate_size': 16,
    'moe_shared_expert_intermediate_size': 32,
    'n_group': 1,
    'topk_group': 1,
    'norm_topk_prob': True,
    'routed_scaling_factor': 2.5,
    'layer_norm_epsilon': 1e-05,
    'time_step_limit': [0.0, float('inf')],
    'time_step_min': 0.001,
    'time_step_max': 0.1,
    'time_step_floor': 0.0001,
    'max_position_embeddings': 1024,
    'tie_word_embeddings': False,
    'residual_in_fp32': False,
    'mamba_ssm_cache_dtype': 'float32',
    'torch_dtype': 'bfloat16',
    'bos_token_id': 1,
    'eos_token_id': [2, 11],
    'pad_token_id': 0,
    'num_logits_to_keep': 1,
}


def micro_config(**changes: object) -> dict[str, Any]:
    """A config.json with some keys changed; `num_hidden_layers` follows the pattern."""
    config = BASE | changes
    config['num_hidden_layers'] = len(config['hybrid_override_pattern'])
    return config


class _Weights:
    """Draws float32 arrays and collects them under release names."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.tensors: dict[str, np.ndarray] = {}

    def normal(self, name: str, shape: tuple[int, ...], scale: float, mean: float = 0.0) -> np.ndarray:
        values = (mean + scale * self.random.standard_normal(shape)).astype(np.float32)
        self.tensors[name] = values
        return values

    def linear(self, module: str, rows: int, columns: int, gain: float = 1.0, bias: bool = False) -> np.ndarray:
        if bias:
            self.normal(f'{module}.bias', (rows,), 0.2)
        return self.normal(f'{module}.weight', (rows, columns), gain / columns**0.5)


def random_weights(config: dict[str, Any], seed: int) -> dict[str, np.ndarray]:
    """float32 weights by release name, routed experts apart."""
    weights = _Weights(seed)
    hidden, vocabulary = config['hidden_size'], config['vocab_size']
    weights.normal('backbone.embeddings.weight', (vocabulary, hidden), 1.0)
    parts = {'M': _mamba, 'E': _moe, '*': _attention, '-': _mlp}
    for layer, kind in enumerate(config['hybrid_override_pattern']):
        prefix = f'backbone.layers.{layer}'
        weights.normal(f'{prefix}.norm.weight', (hidden,), 0.1, 1.0)
        parts[kind](weights, f'{prefix}.mixer', config)
    weights.normal('backbone.norm_f.weight', (hidden,), 0.1, 1.0)
    if not config['tie_word_embeddings']:
        weights.linear('lm_head', vocabulary, hidden, gain=2.0)
    return weights.tensors


def _mamba(weights: _Weights, prefix: str, config: dict[str, Any]) -> None:
    heads, groups, state = config['mamba_num_heads'], config['n_groups'], config['ssm_state_size']
    inner = heads * config['mamba_head_dim']
    channels = inner + 2 * groups * state
    in_proj = weights.linear(
        f'{prefix}.in_proj', inner + channels + heads, config['hidden_size'], bias=config['use_bias']
    )
    in_proj[2 * inner : inner + channels] *= 2  # B and C, so that the state outweighs the skip path
    weights.normal(f'{prefix}.conv1d.weight', (channels, 1, config['conv_kernel']), config['conv_kernel'] ** -0.5)
    if config['use_conv_bias']:
        weights.normal(f'{prefix}.conv1d.bias', (channels,), 0.2)
    step = np.exp(weights.random.uniform(np.log(0.001), np.log(0.3), heads))
    weights.tensors[f'{prefix}.dt_bias'] = np.log(np.expm1(step)).astype(np.float32)
    weights.tensors[f'{prefix}.A_log'] = np.log(weights.random.uniform(0.5, 8, heads)).astype(np.float32)
    weights.normal(f'{prefix}.D', (heads,), 0.3, 0.7)
    weights.normal(f'{prefix}.norm.weight', (inner,), 0.1, 1.0)
    weights.linear(f'{prefix}.out_proj', config['hidden_size'], inner, bias=config['use_bias'])


def _moe(weights: _Weights, prefix: str, config: dict[str, Any]) -> None:
    hidden, experts = config['hidden_size'], config['n_routed_experts']
    weights.linear(f'{prefix}.gate', experts, hidden)
    weights.normal(f'{prefix}.gate.e_score_correction_bias', (experts,), 0.1)
    for expert in range(experts):
        _relu2(weights, f'{prefix}.experts.{expert}', hidden, config['moe_intermediate_size'], bias=False)
    width = config['moe_shared_expert_intermediate_size']
    _relu2(weights, f'{prefix}.shared_experts', hidden, width, bias=config['mlp_bias'])


def _mlp(weights: _Weights, prefix: str, config: dict[str, Any]) -> None:
    _relu2(weights, prefix, config['hidden_size'], config['intermediate_size'], bias=config['mlp_bias'])


def _relu2(weights: _Weights, prefix: str, hidden: int, width: int, bias: bool) -> None:
    weights.linear(f'{prefix}.up_proj', width, hidden, bias=bias)
    weights.linear(f'{prefix}.down_proj', hidden, width, gain=1.5**-0.5, bias=bias)


def _attention(weights: _Weights, prefix: str, config: dict[str, Any]) -> None:
    hidden, bias = config['hidden_size'], config['attention_bias']
    queries = config['num_attention_heads'] * config['head_dim']
    keys = config['num_key_value_heads'] * config['head_dim']
    weights.linear(f'{prefix}.q_proj', queries, hidden, gain=1.5, bias=bias)
    weights.linear(f'{prefix}.k_proj', keys, hidden, gain=1.5, bias=bias)
    weights.linear(f'{prefix}.v_proj', keys, hidden, gain=1.5, bias=bias)
    weights.linear(f'{prefix}.o_proj', hidden, queries, gain=1.5, bias=bias)
