"""As much compute for every arm: what its updates take is paid for with its steps.

What an update takes is told beforehand, by the forecast that ``dataflex-cli plan`` prints: FLOPs of training and of
deciding. An arm gets the most steps with which the sum of both is no more than the reference's.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from dataflex.config.spec import RunSpec
from dataflex.core.errors import ConfigError

FORECAST = "dataflex.forecast.forecast"
_ROUNDS = 40  # of halving the steps between those that fit and those that do not


def forecast_is_there() -> bool:
    """Returns whether this dataflex can tell what a run takes."""
    return find_spec("dataflex.forecast") is not None


def flops(spec: RunSpec) -> float:
    """Returns what a run takes, deciding included.

    Raises:
        ConfigError: This dataflex has no forecast.
    """
    if not forecast_is_there():
        raise ConfigError(
            "equal: compute needs what dataflex-cli plan tells of a run, and this dataflex has no such command -> use "
            "equal: steps or equal: tokens, or install a version of dataflex that has it"
        )
    found: Any = import_module(FORECAST).forecast(spec)
    return float(found.training_flops) + float(found.deciding_flops)


def steps_for(budget: float, before: int, cost: Callable[[int], float], who: str) -> int:
    """Returns the most steps whose cost is within a budget.

    Args:
        budget: FLOPs.
        before: Steps to look around.
        cost: Steps -> FLOPs of the arm with as many; it grows with them.
        who: The arm, for the message.

    Raises:
        ConfigError: Its updates alone are more than that.
    """
    cost(before)  # whatever else is wrong with it is said here
    low, high = 0, before
    while _fits(high, budget, cost) and high < 64 * before:
        low, high = high, 2 * high
    for _ in range(_ROUNDS):
        if high - low <= 1:
            break
        middle = (low + high) // 2
        low, high = (middle, high) if _fits(middle, budget, cost) else (low, middle)
    if low < 1 or not _is_possible(low, cost):
        raise ConfigError(
            f"{who}: its updates alone take more compute than the whole of the run that it is compared with -> give it "
            "fewer updates or cheaper ones, make the base longer, or use equal: steps"
        )
    return low


def _is_possible(steps: int, cost: Callable[[int], float]) -> bool:
    """Whether the updates of the arm fit into so many steps."""
    try:
        cost(steps)
    except ConfigError:
        return False
    return True


def _fits(steps: int, budget: float, cost: Callable[[int], float]) -> bool:
    """Whether so many steps are within the budget; those that the updates do not fit into are too few, so they are."""
    return not _is_possible(steps, cost) or cost(steps) <= budget
