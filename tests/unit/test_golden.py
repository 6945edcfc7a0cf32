"""Numbers of the authors' programs that components without a test module of their own kind meet.

Those of odm, dynamic_moe and the orders are compared in their own modules.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from dataflex_selectors.parts.pick import pick
from dataflex_weighters.loss import UTILITIES, sample_weights
from golden_numbers import FOLDER, golden_cases

SORTED = [case for case in golden_cases("ordering") if case["pattern"] == "sorting"]


def test_every_file_of_numbers_is_compared_somewhere():
    """A copied file that no test reads would look like a method that is met."""
    tests = "".join(path.read_text(encoding="utf-8") for path in FOLDER.parent.glob("test_*.py"))
    for path in FOLDER.glob("*.json"):
        assert f'golden_cases("{path.stem}")' in tests, path.name


@pytest.mark.parametrize("strategy", UTILITIES)
def test_the_weights_by_loss_are_those_of_the_authors_program(strategy):
    cases = [case for case in golden_cases("loss_weights") if case["strategy"] == strategy]
    assert len(cases) == 48
    for case in cases:
        losses = torch.tensor(case["losses"], dtype=torch.float64)
        found = sample_weights(losses, strategy, case["delta"], case["temperature"]) / len(losses)  # ours: mean 1
        np.testing.assert_allclose(found, case["weights"], rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    "case", SORTED, ids=lambda c: f"{len(c['scores'])} {'up' if c['params']['ascending'] else 'down'}"
)
def test_rows_by_their_scores_are_sorted_as_published_ties_by_their_row(case):
    """What the scores selector does with mode topk where it takes every row; ascending, with the signs changed."""
    scores = np.array(case["scores"]) * (-1 if case["params"]["ascending"] else 1)
    found = pick(scores[:, None], len(scores), "topk", 1.0, np.random.default_rng(0))
    assert found.tolist() == case["order"]
