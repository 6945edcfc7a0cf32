"""How well ``zeroth`` estimates the influence that LESS computes from gradients, by the number of directions.

    python -m benchmarks.zeroth_directions

A Llama of random weights, all of them trained, and 24 rows. ``two kinds``: 12 of the target's 8 tokens and 12 of 32,
as in tests/unit/test_zeroth.py; ``one kind``: rows and target are all of 128 tokens drawn evenly, so that the exact
cosines differ little. Printed: the correlation of the scores with the exact cosines over the rows, mean and range over
the seeds of the directions.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch
from dataflex.core.context import UpdateContext
from dataflex.testing import TokenRows, pad_collate, tiny_model
from dataflex_selectors.zeroth import ZerothSelector
from numpy.typing import NDArray

from benchmarks.common import add_device, at_least

COUNTS = (1, 8, 16, 64)
LENGTHS = range(6, 24)


def two_kinds(hidden: int) -> tuple[str, Any, list[Any], Any]:
    """Returns a name, a model of that width, the rows and the target."""
    near, far, target = (TokenRows(12, vocab_size=v, lengths=LENGTHS, seed=s) for v, s in ((8, 1), (32, 2), (8, 3)))
    name = f"two kinds, vocab_size=32, hidden={hidden}, layers=1"
    return name, tiny_model(32, hidden, 1).eval(), [*near, *far], target


def one_kind() -> tuple[str, Any, list[Any], Any]:
    """Returns a name, a model, the rows and the target."""
    rows, target = TokenRows(24, lengths=LENGTHS), TokenRows(5, lengths=LENGTHS, seed=5)
    return "one kind, vocab_size=128, hidden=32, layers=2", tiny_model().eval(), list(rows), target


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=at_least(1), default=20)
    add_device(parser)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name, model, rows, target in (two_kinds(16), two_kinds(32), one_kind()):
        measure(name, model, rows, target, options.seeds)


def measure(name: str, model: Any, rows: list[Any], target: Any, seeds: int) -> None:
    """Prints the correlations for each number of directions."""
    exact_ND, goal_D = gradients(model, rows), gradients(model, target).mean(axis=0)
    exact_N = exact_ND @ goal_D / (np.linalg.norm(exact_ND, axis=1) * np.linalg.norm(goal_D))
    print(f"{name}: {exact_ND.shape[1]} weights, cosines {exact_N.mean():.2f} ± {exact_N.std():.2f}", flush=True)
    for directions in COUNTS:
        found = []
        for seed in range(seeds):
            selector = ZerothSelector(
                dataset=rows,
                eval_dataset=target,
                accelerator=None,
                data_collator=pad_collate,
                cache_dir="unused",
                directions=directions,
                method="jvp",
            )
            selector.bind("zeroth", seed)
            scores_N = selector.scores(model, 10, context=UpdateContext(0, 9, 10, 90, 1e-3, None))
            found.append(np.corrcoef(scores_N, exact_N)[0, 1])
        print(f"{directions:4d} directions: {np.mean(found):.2f} ({min(found):.2f} to {max(found):.2f})", flush=True)


def gradients(model: Any, dataset: Any) -> NDArray[np.float64]:
    """Returns each row's gradient by a backward pass of its own: (N, D)."""
    found = []
    for row in dataset:
        loss = model(**pad_collate([row]), use_cache=False).loss
        found.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]))
    return np.asarray(torch.stack(found).cpu().double().numpy())


if __name__ == "__main__":
    main()
