"""transformers in float32 as the reference of exact mode, on any checkpoint of the family.

Weights are dequantised to float32 first. Three things of transformers are put right:

* its Mamba prefill clamps dt from below at `time_step_min`, which no served implementation does: the clamp is removed;
* it ignores `attention_bias`: where a checkpoint has attention biases, biased projections replace the plain ones;
* it never ties `lm_head` to the embeddings: where a tied checkpoint has no `lm_head.weight`, it is copied.

    python recipes/reference.py <folder> --ids 1,5,9 [--greedy 16]
    python recipes/reference.py <folder> --goldens <goldens.safetensors>
"""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache, NemotronHConfig, NemotronHForCausalLM

from dequantize import load_float32
from reference_config import load_config, pattern_of
from safetensors_io import Tensor, read_file

NOT_MODEL_KEYS = ('quantization_config', 'torch_dtype', 'dtype', 'auto_map', 'architectures', 'transformers_version')
EXPERT = re.compile(r'(.*\.experts)\.(\d+)\.(up_proj|down_proj)\.weight')


@dataclass(frozen=True)
class Result:
    """Outputs for one prompt of n tokens.

    logits [n, vocabulary] float32; argmax [n] int32; margin [n] float32, best minus second best logit;
    greedy [m] int32, the continuation up to and including a stop id; greedy_margin [m] float32.
    """

    logits: np.ndarray
    argmax: np.ndarray
    margin: np.ndarray
    greedy: np.ndarray
    greedy_margin: np.ndarray


def model_state(weights: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Release names to transformers' own: `model.` for `backbone.`, the experts of a layer stacked [E, out, in]."""
    state: dict[str, torch.Tensor] = {}
    stacks: dict[str, dict[int, np.ndarray]] = {}
    for name, value in weights.items():
        name = re.sub(r'^backbone\.', 'model.', name)
        expert = EXPERT.fullmatch(name)
        if expert:
            stacks.setdefault(f'{expert[1]}.{expert[3]}', {})[int(expert[2])] = value
        else:
            state[name] = torch.from_numpy(value.copy())
    for name, experts in stacks.items():
        state[name] = torch.from_numpy(np.stack([experts[number] for number in range(len(experts))]))
    return state


def model_config(config: dict[str, Any]) -> NemotronHConfig:
    """The transformers configuration of a config.json, whatever its flavour."""
    keys = {key: value for key, value in config.items() if key not in NOT_MODEL_KEYS}
    keys['hybrid_override_pattern'] = pattern_of(config)
    for key in ('layers_block_type', 'layer_types', 'mtp_layers_block_type'):
        keys.pop(key, None)
    return NemotronHConfig(**keys)


class Reference:
    """A checkpoint as a float32 transformers model."""

    def __init__(self, config: dict[str, Any], weights: dict[str, np.ndarray]) -> None:
        """Build the model; a missing, unknown or misshapen weight is an error."""
        state = model_state(weights)
        if config.get('tie_word_embeddings') and 'lm_head.weight' not in state:
            state['lm_head.weight'] = state['model.embeddings.weight']
        model = NemotronHForCausalLM._from_config(
            model_config(config), dtype=torch.float32, attn_implementation='eager', experts_implementation='eager'
        )
        for module_name, module in model.named_modules():
            if hasattr(module, 'time_step_limit'):
                module.time_step_limit = (0.0, float('inf'))
            for projection in ('q_proj', 'k_proj', 'v_proj', 'o_proj'):
                if f'{module_name}.{projection}.bias' in state:
                    plain = getattr(module, projection)
                    setattr(module, projection, torch.nn.Linear(plain.in_features, plain.out_features))
        model.load_state_dict(state, strict=True)
        self.model = model.eval()
        stop = config.get('eos_token_id')
        self.stop_ids = set(stop if isinstance(stop, list) else [] if stop is None else [stop])

    @classmethod
    def open(cls, folder: Path) -> Reference:
        """Read a checkpoint folder of any format."""
        return cls(load_config(folder), load_float32(folder))

    @torch.no_grad()
    def run(self, ids: np.ndarray, greedy: int) -> Result:
        """Logits of every position and a greedy continuation of at most `greedy` tokens.

        The continuation is decoded with transformers' cache, or, as that needs an attention layer, by running the
        whole sequence again for every token of a model that has none.
        """
        cached = 'full_attention' in self.model.config.layers_block_type
        cache = DynamicCache(config=self.model.config) if cached else None
        sequence = ids
        logits = self._step(sequence, cache)
        first = last = _best(logits)
        tokens: list[int] = []
        margins: list[float] = []
        while len(tokens) < greedy:
            tokens.append(int(last[0][-1]))
            margins.append(float(last[1][-1]))
            if tokens[-1] in self.stop_ids or len(tokens) == greedy:
                break
            sequence = np.append(sequence, tokens[-1])
            last = _best(self._step(sequence[-1:] if cached else sequence, cache))
        return Result(logits, *first, np.array(tokens, np.int32), np.array(margins, np.float32))

    def _step(self, ids: np.ndarray, cache: DynamicCache | None) -> np.ndarray:
        batch = torch.from_numpy(ids.astype(np.int64))[None]
        return self.model(batch, past_key_values=cache, use_cache=cache is not None).logits[0].numpy()


def _best(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of logits [n, vocabulary]: argmax [n] int32 (the lowest id of a tie) and top-2 margin [n] float32."""
    second, first = np.partition(logits, -2, axis=-1)[:, -2:].T
    return logits.argmax(axis=-1).astype(np.int32), first - second


def relative_l2(ours: np.ndarray, theirs: np.ndarray) -> float:
    """|ours - theirs| / |theirs| over all entries, in float64."""
    theirs = theirs.astype(np.float64)
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def compare(reference: Reference, goldens: dict[str, Tensor]) -> float:
    """Print how far the reference is from stored goldens, prompt by prompt; returns the largest relative L2."""
    worst = 0.0
    for prompt in range(sum(name.endswith('.input_ids') for name in goldens)):
        want = {key: goldens[f'{prompt}.{key}'].data for key in ('input_ids', 'logits', 'argmax', 'greedy')}
        got = reference.run(want['input_ids'], len(want['greedy']))
        error = relative_l2(got.logits[-len(want['logits']) :], want['logits'])
        flips = got.argmax != want['argmax']
        margin = float(got.margin[flips].max(initial=0))
        same = np.array_equal(got.greedy, want['greedy'])
        print(
            f'{prompt:3d} {len(want["input_ids"]):5d} tokens  relative L2 {error:.2e}  '
            f'argmax differs {flips.sum()} (margin up to {margin:.1e})  greedy {"equal" if same else "DIFFERS"}'
        )
        worst = max(worst, error)
    return worst


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', type=Path)
    parser.add_argument('--ids', help='prompt ids, separated by commas')
    parser.add_argument('--last', type=int, default=1, help='positions whose logits are printed')
    parser.add_argument('--greedy', type=int, default=0, help='tokens to generate')
    parser.add_argument('--goldens', type=Path, help='compare with this goldens file')
    args = parser.parse_args()
    reference = Reference.open(args.folder)
    if args.goldens:
        print(f'worst relative L2 {compare(reference, read_file(args.goldens)):.2e}')
    if args.ids:
        result = reference.run(np.array([int(part) for part in args.ids.split(',')]), args.greedy)
        answer = {
            'argmax': result.argmax.tolist(),
            'margin': result.margin.tolist(),
            'logits': result.logits[-args.last :].tolist(),
            'greedy': result.greedy.tolist(),
            'greedy_margin': result.greedy_margin.tolist(),
        }
        print(json.dumps(answer))


if __name__ == '__main__':
    main()
