"""Every component of this project keeps what a run relies on, point by point.

What a component cannot do without (a file, a reference model, a mixture of experts) is given here; a component that is
new needs a line only for that.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataflex.core.kinds import KINDS, Kind
from dataflex.core.registry import provided
from dataflex.testing import TokenRows, tiny_model
from dataflex.testing.conformance_call import Case, conformance_cases
from dataflex.testing.conformance_points import POINTS
from every_component import QUICK

ROWS, LENGTHS = 48, range(8, 25)


def experts() -> Any:
    return tiny_model(layers=1, kind="mixtral")


def reference(folder: Path) -> str:
    tiny_model(layers=1, seed=3).save_pretrained(folder / "reference")
    return str(folder / "reference")


class Numbered(TokenRows):
    """Rows with a column of numbers."""

    def __getitem__(self, index):
        row = super().__getitem__(index)
        ids = row["input_ids"]
        return row | {"number": 0.5 + sum(ids) % 7, "weights": [0.5 + token % 3 for token in ids]}


def numbered() -> dict[str, Any]:
    sources = {"a": Numbered(20, lengths=LENGTHS, seed=1), "b": Numbered(36, lengths=LENGTHS, seed=2)}
    return {"rows": Numbered(ROWS, lengths=LENGTHS), "sources": sources}


def numbers(folder: Path) -> str:
    np.save(folder / "numbers", np.random.default_rng(5).uniform(0.5, 2, ROWS))
    return str(folder / "numbers.npy")


NEEDS = {  # what it is run on, beside what the kit gives; a function of a folder for what takes files
    ("mixer", "doremi"): lambda folder: {"params": {"reference_model": reference(folder), "eta": 5.0}},
    ("mixer", "dynamic_moe"): lambda folder: {"model": experts, "params": {"eval_rows": 5}},
    ("mixer", "schedule"): lambda folder: {
        "params": {"points": [{"at": 0, "proportions": [1, 3]}, {"at": 6, "proportions": [3, 1]}]}
    },
    ("mixer", "ado"): lambda folder: {"params": {"fit_every": 1, "start_step": 1, "skip_steps": 0}},
    ("selector", "rho_loss"): lambda folder: {"params": {"column": "number"}, **numbered()},
    ("selector", "scores"): lambda folder: {  # a file has its rows in one order, and a mixture its sources
        "params": {"file": numbers(folder)},
        "beside": ["order", "weighter"],
    },
    ("weighter", "column"): lambda folder: {"params": {"column": "number"}, **numbered()},
    ("weighter", "rho_tokens"): lambda folder: {"params": {"reference_model": reference(folder), "share": 0.5}},
    ("weighter", "token_column"): lambda folder: {"params": {"column": "weights"}, **numbered()},
    ("weighter", "spans"): lambda folder: {"params": {"between": [{"start": "e", "end": "t", "weight": 0.5}]}},
    ("weighter", "adapt"): lambda folder: {"params": {"refresh": 2}},
}
OURS = [(kind, point.name) for kind in KINDS for point in provided(kind)]


@pytest.fixture(scope="module")
def cases(tmp_path_factory) -> Iterator[Any]:
    """Returns a function that gives the cases of a component; those of one share their runs."""
    made: dict[tuple[Kind, str], dict[str, Case]] = {}

    def of(kind: Kind, name: str, point: str) -> Case:
        if (kind, name) not in made:
            made.clear()  # the runs of the one before
            given = NEEDS.get((kind.name, name), lambda folder: {})(tmp_path_factory.mktemp(name))
            given["params"] = QUICK.get(name, {}) | given.get("params", {})
            made[kind, name] = {case.point: case for case in conformance_cases(name, kind=kind, **given)}
        return made[kind, name][point]

    yield of
    made.clear()


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize(("kind", "name"), OURS, ids=lambda value: value if isinstance(value, str) else value.name)
def test_each_component_conforms(kind: Kind, name: str, point: str, cases):
    cases(kind, name, point).check()
