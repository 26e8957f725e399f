"""Held-out tasks, teacher-forced, by transformers in float32: exact match, and the distance between two checkpoints.

A task counts as exact when every token of its completion is the argmax. With `--against`, the mean KL divergence
KL(other ‖ folder) in nats and the top-1 agreement over the completions' positions are printed too.

    python recipes/evaluate.py <folder> <heldout.jsonl> [--against <folder>] [--limit N]
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from reference import Reference


@torch.no_grad()
def completion_logits(reference: Reference, prompt: list[int], completion: list[int]) -> torch.Tensor:
    """Logits [completion tokens, vocabulary] float64 of the positions that predict the completion."""
    ids = torch.tensor([prompt + completion])
    return reference.model(ids, use_cache=False).logits[0, len(prompt) - 1 : -1].double()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', type=Path)
    parser.add_argument('tasks', type=Path)
    parser.add_argument('--against', type=Path)
    parser.add_argument('--limit', type=int)
    args = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(args.folder / 'tokenizer.json'))
    reference = Reference.open(args.folder)
    other = Reference.open(args.against) if args.against else None
    exact: dict[str, list[bool]] = defaultdict(list)
    divergence: list[np.ndarray] = []
    agreement: list[np.ndarray] = []
    for line in args.tasks.read_text().splitlines()[: args.limit]:
        task = json.loads(line)
        prompt, completion = (
            tokenizer.encode(task[part], add_special_tokens=False).ids for part in ('prompt', 'completion')
        )
        logits = completion_logits(reference, prompt, completion)
        exact['thinking' if task['thinking'] else 'direct'].append(logits.argmax(-1).tolist() == completion)
        if other:
            wanted = completion_logits(other, prompt, completion)
            difference = wanted.log_softmax(-1) - logits.log_softmax(-1)
            divergence.append((wanted.softmax(-1) * difference).sum(-1).numpy())
            agreement.append((wanted.argmax(-1) == logits.argmax(-1)).numpy())
    for mode, results in exact.items():
        print(f'{mode}: {np.mean(results):.4f} exact of {len(results)}')
    if other:
        print(f'KL {np.concatenate(divergence).mean():.5f}, top-1 agreement {np.concatenate(agreement).mean():.5f}')


if __name__ == '__main__':
    main()
