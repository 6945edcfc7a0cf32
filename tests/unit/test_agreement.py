"""Ranks that decided differently are found wherever their decisions differ, and all of them are told."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from dataflex.core.errors import ComponentError
from dataflex.core.ranks.agreement import require_agreement

DIGEST = "0123456789abcdef"


class Rank:
    """The part of an accelerator that is asked, each rank a thread."""

    device = torch.device("cpu")

    def __init__(self, number: int, together: list[torch.Tensor | None], barrier: Barrier) -> None:
        self.number, self.together, self.barrier = number, together, barrier

    @property
    def num_processes(self) -> int:
        return len(self.together)

    def gather(self, mine: torch.Tensor) -> torch.Tensor:
        self.together[self.number] = mine
        self.barrier.wait(timeout=30)
        return torch.cat([held for held in self.together if held is not None])


def agreeing(*digests: str) -> list[str | None]:
    """Returns what each rank is told: the error's text, or None."""
    ranks: list[torch.Tensor | None] = [None] * len(digests)
    barrier = Barrier(len(digests))

    def ask(number: int) -> str | None:
        try:
            require_agreement(digests[number], Rank(number, ranks, barrier), "selector 'x' at update 0 (step 2)")
        except ComponentError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(len(digests)) as threads:
        return list(threads.map(ask, range(len(digests))))


def test_equal_decisions_pass():
    assert agreeing(DIGEST, DIGEST, DIGEST) == [None, None, None]


@pytest.mark.parametrize("place", range(len(DIGEST)))
def test_a_decision_that_differs_in_any_one_digit_is_found_on_every_rank(place):
    other = DIGEST[:place] + "0f"[DIGEST[place] == "0"] + DIGEST[place + 1 :]
    told = agreeing(DIGEST, DIGEST, other)
    assert len(set(told)) == 1, "an error on one rank alone would leave the others waiting"
    assert told[0].startswith("selector 'x' at update 0 (step 2) decided differently on rank 2 than on rank 0 -> ")


def test_each_rank_that_differs_from_rank_0_is_named():
    told = agreeing(DIGEST, "f" * 16, DIGEST, "0" * 16)
    assert "on rank 1, 3 than on rank 0" in told[0]


def test_a_run_of_one_rank_asks_nobody():
    require_agreement(DIGEST, Rank(0, [None], Barrier(2)), "selector 'x'")
