"""Reading config.json of the family in every flavour seen, and the layer pattern in one spelling."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

LETTERS = {
    'mamba': 'M',
    'linear_attention': 'M',
    'moe': 'E',
    'attention': '*',
    'full_attention': '*',
    'mlp': '-',
}


def load_config(folder: Path) -> dict[str, Any]:
    """config.json as a dict. Reads bare Infinity and NaN, repeated keys (last wins), {"__float__": "Infinity"}."""

    def revive(node: dict[str, Any]) -> dict[str, Any] | float:
        return float(node['__float__']) if set(node) == {'__float__'} else node

    return json.loads((folder / 'config.json').read_text(), object_hook=revive)


def pattern_of(config: dict[str, Any]) -> str:
    """The layers as letters: M Mamba, E mixture of experts, * attention, - dense MLP."""
    if 'hybrid_override_pattern' in config:
        return config['hybrid_override_pattern']
    kinds = config.get('layers_block_type') or config['layer_types']
    return ''.join(LETTERS[kind] for kind in kinds)
