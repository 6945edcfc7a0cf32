"""What leaving near copies out is worth, where it is known which rows are copies, against random rows.

    python -m benchmarks.near_duplicates --seeds 5

The rows of :mod:`benchmarks.selection_quality`, ten families of tasks, of which a few come very often: each copy has
some tokens of its question exchanged and the answer as it was. Every run starts from the same small model and goes
through the real trainer: a warm-up on random rows, then some updates. Counted are, among the rows of all updates, those
that are a copy of another one among them; the finished model is measured on held-out rows of all families.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import add_device, add_threads, at_least, chosen, machine, quieten
from benchmarks.quality_data import Pool, Row, base_model, pool, world
from benchmarks.selection_quality import BATCH, SEGMENT, UPDATES, spread, test_loss, trained

COPIED, COPIES, CHANGED = 40, 150, 0.03
"""Rows that come often, copies of each, and the share of a question's tokens that a copy has exchanged."""

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "random": ("random", {}),
    "semdedup": ("semdedup", {}),
    "semdedup, eps 0.2": ("semdedup", {"eps": 0.2}),
    "semdedup, eps 0.2, easy": ("semdedup", {"eps": 0.2, "keep": "easy"}),
    "deita, length": ("deita", {"threshold": 0.8}),
    "deita, length, no threshold": ("deita", {"threshold": 1.0}),
    "deita, loss": ("deita", {"score": "loss", "ascending": True, "threshold": 0.8}),
    "loss, low": ("loss", {"focus": "low"}),
}


@dataclass(frozen=True)
class Outcome:
    """What one run took and learnt.

    Attributes:
        copies: Share of the selected rows that are a copy of another one among them.
        often: Share of the selected rows that are of the rows which come often.
        clean: Share whose answer is right.
        loss: Mean loss of the trained model on held-out rows of all families.
    """

    copies: float
    often: float
    clean: float
    loss: float


def with_copies(rows: Pool, generator: np.random.Generator) -> tuple[Pool, NDArray[np.int64]]:
    """Returns the rows with many copies of a few of them, in a random order, and which row each is a copy of."""
    groups = np.concatenate([np.arange(len(rows.rows)), np.repeat(
        generator.choice(len(rows.rows), COPIED, replace=False), COPIES
    )])  # fmt: skip
    groups = groups[generator.permutation(len(groups))]
    firsts: set[int] = set()
    made = []
    for group in groups.tolist():
        made.append(changed(rows.rows[group], generator) if group in firsts else rows.rows[group])
        firsts.add(group)
    found = replace(
        rows, rows=made, families=[rows.families[group] for group in groups], in_target=rows.in_target[groups],
        clean=rows.clean[groups],
    )  # fmt: skip
    return found, groups


def changed(row: Row, generator: np.random.Generator) -> Row:
    """Returns the row with some tokens of its question exchanged for others of it."""
    tokens = np.array(row["input_ids"])
    asked = np.flatnonzero(np.array(row["labels"]) == -100)
    places = asked[generator.random(len(asked)) < CHANGED]
    tokens[places] = generator.choice(tokens[asked], len(places))
    return row | {"input_ids": tokens.tolist()}


def one_seed(names: Sequence[str], shared: Any, base: Path, folder: Path, seed: int) -> dict[str, Outcome]:
    """Returns method -> outcome, all on the same rows."""
    rows, groups = with_copies(pool(shared, None, seed), np.random.default_rng(seed))
    often = np.bincount(groups)[groups] > 1
    found = {}
    for number, name in enumerate(names):
        began = time.perf_counter()
        taken, model = trained(*METHODS[name], rows, base, folder / str(number), seed)
        loss = float(np.mean([test_loss(model, held_out) for held_out in rows.test.values()]))
        copies = 1 - len(np.unique(groups[taken])) / len(taken)
        found[name] = Outcome(copies, float(often[taken].mean()), float(rows.clean[taken].mean()), loss)
        print(f"seed {seed}  {name:<28} {time.perf_counter() - began:6.1f} s  {found[name]}", file=sys.stderr)
    return found


def table(outcomes: Sequence[Mapping[str, Outcome]]) -> str:
    """Returns a Markdown table with a row for each method; losses are differences to ``random`` of the same seed."""
    lines = [
        "| method | copies of another row taken | of the rows that come often | right | held-out loss - random's "
        "| seeds it is lower in |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name in outcomes[0]:
        found = [seed[name] for seed in outcomes]
        less = [seed[name].loss - seed["random"].loss for seed in outcomes]
        cells = [name, *(spread([getattr(one, key) for one in found]) for key in ("copies", "often", "clean"))]
        if name == "random":
            cells += [f"({spread([one.loss for one in found], 3)})", "-"]
        else:
            cells += [spread(less, 3, "+"), f"{sum(one < 0 for one in less)} of {len(less)}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=at_least(1), default=5)
    parser.add_argument("--only", help=f"methods, separated by ';' ({'; '.join(METHODS)}); random is always among them")
    parser.add_argument("--base-steps", type=at_least(1), default=3000, help="steps that the base model is trained for")
    parser.add_argument("--base", type=Path, help="folder to keep the base model in, or to take it from")
    add_threads(parser)
    add_device(parser)
    options = parser.parse_args()
    names = list(dict.fromkeys(["random", *chosen(parser, options.only, METHODS)]))
    quieten(options.threads)
    shared = world()
    with tempfile.TemporaryDirectory() as temporary:
        base = options.base or Path(temporary, "base")
        if not (base / "config.json").exists():
            base_model(shared, base, options.base_steps)
        outcomes = [one_seed(names, shared, base, Path(temporary, str(seed)), seed) for seed in range(options.seeds)]
    rows, _ = with_copies(pool(shared, None, 0), np.random.default_rng(0))
    print(f"{machine(options.device)}; {options.seeds} seeds, mean ± standard deviation")
    print(
        f"{len(rows.rows)} rows, {COPIED * COPIES} of them copies of {COPIED}; {UPDATES} updates of {SEGMENT * BATCH} "
        "rows each\n"
    )
    print(table(outcomes))


if __name__ == "__main__":
    main()
