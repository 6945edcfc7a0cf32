"""Which runs the real-model benchmark makes, in which order, and the file of those that have ended."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.real_data import CASES, Sizes
from benchmarks.real_runs import Setting

SEEDED = ("before", "random", "less", "near")
"""What is run with every seed, and first."""

LONGER = "random, longer"
"""Random rows for as many steps more as an update of ``less`` costs: equal compute."""

SELECTORS: dict[str, tuple[str, dict[str, Any]]] = {
    "random": ("random", {}),
    "less": ("less", {}),
    "near": ("near", {}),
    LONGER: ("random", {}),
    "near, sentences": ("near", {"embedding": "SENTENCES"}),
    "cluster_less": ("cluster_less", {"clusters": 20}),
    "tsds": ("tsds", {}),
    "loss, low": ("loss", {"focus": "low"}),
    "rho_loss": ("rho_loss", {"pool_factor": None}),
    "zeroth": ("zeroth", {"directions": 4, "candidates": 150}),
}
WEIGHTERS: dict[str, dict[str, Any]] = {"static": {}, "loss": {}, "adapt": {}}
MIXERS: dict[str, dict[str, Any]] = {"sizes": {}, "temperature": {}, "odm": {}}

NAMES = ("before", *SELECTORS, *(f"weighter {name}" for name in WEIGHTERS), *(f"mixer {name}" for name in MIXERS))
REFERENCE_STEPS = 8
"""Steps on the reference rows for rho_loss: one pass."""


@dataclass(frozen=True)
class Plan:
    """A table: what its runs share.

    Attributes:
        setting: Model, rows and steps.
        sizes: How many rows of each part.
        data: The folder with the datasets.
        work: Where data, runs and results are written.
        cache: Where the sentence-transformers model is.
    """

    setting: Setting
    sizes: Sizes
    data: Path
    work: Path
    cache: Path

    def identity(self) -> dict[str, Any]:
        """Returns what makes results comparable."""
        setting = asdict(self.setting) | {"model": self.setting.model.name}
        return {**setting, "sizes": asdict(self.sizes), "version": 1}

    @property
    def results(self) -> Path:
        """The file with a line for each run that has ended."""
        return self.work / "results.jsonl"

    def ended(self) -> list[dict[str, Any]]:
        """Returns the runs that have ended.

        Raises:
            SystemExit: One of them has another setting.
        """
        if not self.results.is_file():
            return []
        found = [json.loads(line) for line in self.results.read_text(encoding="utf-8").splitlines()]
        ours = json.loads(json.dumps(self.identity()))
        for line in found:
            other = [f"{key}: {line['setting'].get(key)}, not {ours.get(key)}" for key in {**ours, **line["setting"]}
                     if line["setting"].get(key) != ours.get(key)]  # fmt: skip
            if other:
                raise SystemExit(
                    f"{self.results} holds results of another setting ({'; '.join(other)}) -> another --work"
                )
        return found


def runs(seeds: int, only: Sequence[str], cases: Sequence[str]) -> Iterator[tuple[str, int, str]]:
    """Yields (case, seed, name) in the order in which they are run: what makes a first table comes first."""
    every = range(1, seeds + 1)
    others = [name for name in SELECTORS if name not in (*SEEDED, LONGER)]
    # The held-out rows of a seed are the same in both cases, and so are the losses on them before training.
    order = [(case, seed, name) for seed in every for case in CASES for name in SEEDED[case != CASES[0] :]]
    order += [(CASES[0], seed, LONGER) for seed in every]
    order += [(CASES[0], 1, name) for name in others]
    order += [("mixture", 1, f"mixer {name}") for name in MIXERS]
    order += [(case, 1, f"weighter {name}") for case in CASES for name in WEIGHTERS]
    order += [(case, 1, name) for case in CASES[1:] for name in others]
    order += [(case, seed, LONGER) for case in CASES[1:] for seed in every]
    for case, seed, name in order:
        if name in only and case in cases:
            yield case, seed, name


@contextmanager
def alone(file: Path) -> Iterator[bool]:
    """Gives True where no other process holds ``file``, and holds it inside of the block."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
