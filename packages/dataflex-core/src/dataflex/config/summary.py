"""What a run does, in one line: said by ``validate``, in the log of ``train`` and in the record."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePath

from dataflex.config.axis_keys import COLUMN, FILE, SEEN
from dataflex.config.spec import Part, RunSpec
from dataflex.core.kinds import WEIGHTER

_SHARES = {0.5: "half", 0.25: "a quarter", 0.75: "three quarters", 1.0: "all"}
_ORDINALS = {1: "st", 2: "nd", 3: "rd"}


def in_words(spec: RunSpec) -> str:
    """Returns the axes of a run in the order in which they act, such as ``filter to half by A; shares by B``."""
    return "; ".join(_sentences(spec)) or "rows, order and weights as LLaMA-Factory has them"


def _sentences(spec: RunSpec) -> Iterator[str]:
    for part in spec.filters:
        yield f"filter to {_share(part.keep or 1.0)} by {_name(part)}{_when(part)}"
    if spec.mixer is not None:
        yield f"shares by {_name(spec.mixer)}{_when(spec.mixer)}{_counted(spec)}"
    elif spec.mixes:
        yield f"shares that stay as they begin{_counted(spec)}"
    if spec.selector is not None:
        within = " within each source" if spec.mixes else ""
        yield f"rows by {_name(spec.selector)}{within}{_when(spec.selector)}"
    if spec.order is not None:
        yield f"order {_name(spec.order)}{_scores(spec.order)}{_when(spec.order)}"
    if spec.weighter is not None:
        yield f"weights by {_name(spec.weighter)}{_when(spec.weighter)}"


def _counted(spec: RunSpec) -> str:
    return "" if spec.arguments.objective_proportions is None else ", counted in the loss by objective_proportions"


def _name(part: Part) -> str:
    return part.component.preset


def _share(keep: float) -> str:
    return _SHARES.get(keep, f"{100 * keep:g} %")


def _scores(order: Part) -> str:
    by, over = order.by, " over the run" if order.over == "run" else ""
    if by is None:
        return over
    if by.startswith(FILE):
        return f" by the file {PurePath(by.removeprefix(FILE)).name}{over}"
    steps = by.removeprefix(SEEN) if by.startswith(SEEN) else ""
    seen = f"the losses seen in the last {steps} steps" if steps else "the losses seen in training"
    known = {"selector": "the selector's scores", "reward": "the rewards", "reward:spread": "the spread of rewards"}
    named = {**known, "seen": seen, f"{SEEN}{steps}": seen}.get(by, by)
    return f" by {f'the column {by.removeprefix(COLUMN)}' if by.startswith(COLUMN) else named}{over}"


def _when(part: Part) -> str:
    every = "" if part.every == 1 or part.component.kind is WEIGHTER else f" every {_ordinal(part.every)} update"
    return every + (f" from step {part.start}" if part.start else "")


def _ordinal(number: int) -> str:
    return f"{number}{'th' if number % 100 in (11, 12, 13) else _ORDINALS.get(number % 10, 'th')}"
