"""What a component could answer that must never be trained on, kind by kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from dataflex.core.kinds import MIXER, ORDER, SELECTOR, WEIGHTER, Kind
from dataflex.interfaces.selector import Selection

Spoil = Callable[[Any], Any]
"""Makes a wrong answer of a right one."""


def _rows(change: Callable[[np.ndarray], np.ndarray]) -> Spoil:
    def spoiled(answer: Any) -> Any:
        if not isinstance(answer, Selection):
            return change(np.asarray(answer))
        rows = change(np.asarray(answer.indices))
        return replace(answer, indices=rows) if len(rows) == len(answer.indices) else rows

    return spoiled


def _first_is(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def changed(answer: np.ndarray) -> np.ndarray:
        found = np.array(answer)
        found[0] = value
        return found

    return changed


def _scores(answer: Any) -> Any:
    selection = answer if isinstance(answer, Selection) else Selection(answer)
    return replace(selection, scores=np.full(len(selection.indices), np.inf))


def _alike(answer: np.ndarray) -> np.ndarray:
    return np.full_like(answer, answer[0])


def _nan_of(loss: torch.Tensor) -> torch.Tensor:
    return loss * float("nan")


def _constant(loss: torch.Tensor) -> torch.Tensor:
    return loss.detach()


WRONG: dict[Kind, dict[str, Spoil]] = {
    SELECTOR: {
        "a row too few": _rows(lambda rows: rows[:-1]),
        "a row that is not there": _rows(_first_is(10**6)),
        "infinite scores": _scores,
    },
    MIXER: {"a share of NaN": _first_is(float("nan")), "shares of sum 2": lambda shares: np.asarray(shares) * 2},
    ORDER: {"a place too few": lambda places: np.asarray(places)[:-1], "a place again and again": _alike},
    WEIGHTER: {"a loss of NaN": _nan_of, "a loss without a gradient": _constant},
}
"""Kind -> what is wrong, in words -> how it is made."""
TWICE: dict[str, Spoil] = {"a row again and again": _rows(_alike)}
"""What a selector without ``replacement`` must not answer."""
