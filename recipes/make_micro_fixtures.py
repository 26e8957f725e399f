"""Write test/fixtures/micro: random checkpoints of every flavour, with goldens by transformers in float32.

A seed is rejected where a routing decision or a greedy choice is too close to a tie for float32 to settle, so that a
correct implementation cannot fail on rounding. Tensors of goldens.safetensors, for prompt N of n tokens:

    N.input_ids [n] I32, N.logits [min(n, 4), vocabulary] F32 of the last positions, N.argmax [n] I32,
    N.margin [n] F32 (best minus second best logit), N.greedy [m] I32 up to and including a stop id,
    N.greedy_margin [m] F32.

    python recipes/make_micro_fixtures.py [--only <name>]
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch

from dequantize import load_float32
from micro_fixtures import FIXTURES, Fixture
from micro_model import random_weights
from reference import Reference, Result
from reference_config import load_config
from safetensors_io import Tensor, f32, i32, write_file, write_shards

FOLDER = Path(__file__).resolve().parent.parent / 'test' / 'fixtures' / 'micro'
KEPT_POSITIONS = 4
GREEDY = 12
CLOSEST_ROUTE = 3e-5
CLOSEST_CHOICE = 2e-2
SHORTEST_ANSWER = 4


class RouteGap:
    """The smallest gap between a chosen and a rejected expert (or group) that a model met."""

    def __init__(self, reference: Reference) -> None:
        """Watch every router of the model."""
        self.smallest = np.inf
        for module in reference.model.modules():
            if hasattr(module, 'e_score_correction_bias'):
                module.register_forward_hook(self._watch)

    def _watch(self, gate: torch.nn.Module, _inputs: object, output: tuple[torch.Tensor, ...]) -> None:
        scores = output[0].sigmoid() + gate.e_score_correction_bias
        groups = scores.view(len(scores), gate.num_group, -1)
        if gate.topk_group < gate.num_group:
            ranks = groups.topk(2, dim=-1)[0].sum(dim=-1)
            self._gap(ranks, gate.topk_group)
            kept = torch.zeros_like(ranks, dtype=torch.bool).scatter_(1, ranks.topk(gate.topk_group)[1], True)
            scores = groups.masked_fill(~kept[..., None], -1e9).flatten(1)
        self._gap(scores, gate.top_k)

    def _gap(self, values: torch.Tensor, count: int) -> None:
        if count < values.shape[-1]:
            best = values.topk(count + 1, dim=-1)[0]
            self.smallest = min(self.smallest, float((best[:, count - 1] - best[:, count]).min()))


def write_checkpoint(folder: Path, fixture: Fixture, seed: int) -> None:
    """Write config.json, the weights and the quantisation sidecar."""
    weights = random_weights(fixture.config, seed)
    if fixture.save_pretrained:
        fixture.save_pretrained(folder, fixture.config, weights)
        return
    config = fixture.edit_config(dict(fixture.config))
    text = json.dumps(config, indent=1)
    (folder / 'config.json').write_text(text + '\n')
    write_shards(folder, fixture.store(weights), fixture.shards, fixture.index)
    if fixture.sidecar:
        (folder / 'hf_quant_config.json').write_text(json.dumps(fixture.sidecar, indent=1) + '\n')


def run_prompts(folder: Path, fixture: Fixture, seed: int) -> tuple[list[tuple[np.ndarray, Result]], float]:
    """Each prompt with its result, and the smallest routing gap."""
    reference = Reference.open(folder)
    gap = RouteGap(reference)
    random = np.random.default_rng(seed + 1_000_000)
    prompts = [random.integers(3, fixture.config['vocab_size'], length) for length in fixture.prompts]
    return [(ids, reference.run(ids, GREEDY)) for ids in prompts], gap.smallest


def golden_tensors(results: list[tuple[np.ndarray, Result]]) -> dict[str, Tensor]:
    """The stored tensors of all prompts."""
    tensors: dict[str, Tensor] = {}
    for prompt, (ids, result) in enumerate(results):
        tensors |= {
            f'{prompt}.input_ids': i32(ids),
            f'{prompt}.logits': f32(result.logits[-KEPT_POSITIONS:]),
            f'{prompt}.argmax': i32(result.argmax),
            f'{prompt}.margin': f32(result.margin),
            f'{prompt}.greedy': i32(result.greedy),
            f'{prompt}.greedy_margin': f32(result.greedy_margin),
        }
    return tensors


def make(parent: Path, fixture: Fixture) -> None:
    """Write one fixture below `parent`, with the first seed that has no close call."""
    folder = parent / fixture.name
    for seed in range(fixture.seed, fixture.seed + 200):
        with tempfile.TemporaryDirectory() as temporary:
            draft = Path(temporary)
            write_checkpoint(draft, fixture, seed)
            results, gap = run_prompts(draft, fixture, seed)
            closest = min(float(result.greedy_margin.min()) for _, result in results)
            shortest = min(len(result.greedy) for _, result in results)
            if gap < CLOSEST_ROUTE or closest < CLOSEST_CHOICE or shortest < SHORTEST_ANSWER:
                continue
            write_file(draft / 'goldens.safetensors', golden_tensors(results))
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            for path in draft.iterdir():
                (folder / path.name).write_bytes(path.read_bytes())
        size = sum(path.stat().st_size for path in folder.iterdir())
        spread = np.mean([result.logits.std() for _, result in results])
        print(
            f'{fixture.name:24s} seed {seed:5d}  {size:7d} bytes  logits std {spread:.2f}  closest route {gap:.1e}  '
            f'closest choice {closest:.3f}  greedy {" ".join(str(len(result.greedy)) for _, result in results)}'
        )
        return
    raise RuntimeError(f'{fixture.name}: no seed without a close call')


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--only', help='write this fixture alone')
    args = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    for fixture in FIXTURES:
        if args.only in (None, fixture.name):
            make(FOLDER, fixture)
    total = sum(path.stat().st_size for path in FOLDER.rglob('*') if path.is_file())
    count = sum(1 for path in FOLDER.iterdir() if load_config(path) and load_float32(path))
    print(f'{count} fixtures, {total} bytes')


if __name__ == '__main__':
    main()
