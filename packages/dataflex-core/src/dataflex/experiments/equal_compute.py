"""As much compute for every arm: what its updates take is paid for with its steps.

What an update takes is told beforehand, by the forecast that ``dataflex-cli plan`` prints: FLOPs of training and of
deciding. An arm gets the most steps with which the sum of both is no more than the reference's.
"""

from __future__ import annotations

from collections.abc import Callable

from dataflex.config.spec import RunSpec
from dataflex.core.errors import ConfigError

_MOST = 64  # times the steps that an arm had before


def flops(spec: RunSpec, ranks: int | None = None) -> float:
    """Returns what a run takes, deciding included.

    Args:
        spec: The run.
        ranks: Processes that train.

    Raises:
        ConfigError: A component does not say what it costs.
    """
    from dataflex.forecast.forecast import forecast  # here: it imports torch, and equal steps have no use for it

    found = forecast(spec, ranks=ranks or 1)
    if found.unknown:
        raise ConfigError(
            f"{', '.join(map(str, found.unknown))}: does not say what it costs, so compute cannot be held equal -> use "
            "equal: steps or equal: tokens, or have its class declare its cost"
        )
    return found.training_flops + found.deciding_flops


def steps_for(budget: float, before: int, cost: Callable[[int], float], who: str) -> int:
    """Returns the most steps whose cost is within a budget.

    A forecast takes seconds, so the next steps to look at are those that the cost of more steps points to.

    Args:
        budget: FLOPs.
        before: Steps to look around.
        cost: Steps -> FLOPs of the arm with as many; it grows with them.
        who: The arm, for the message.

    Raises:
        ConfigError: Its updates alone are more than that.
    """
    low, high, of_high = 0, before, cost(before)
    while of_high <= budget and high < _MOST * before:
        low, high = high, 2 * high
        of_high = cost(high)
    while high - low > 1:
        middle = min(max(int(high * budget / of_high), low + 1), high - 1)
        found = _possible(middle, cost)
        if found is None:  # too few for the updates
            break
        if found <= budget:
            low = middle
        else:
            high, of_high = middle, found
    if low < 1:
        raise ConfigError(
            f"{who}: its updates alone take more compute than the whole of the run that it is compared with -> give it "
            "fewer updates or cheaper ones, make the base longer, or use equal: steps"
        )
    return low


def _possible(steps: int, cost: Callable[[int], float]) -> float | None:
    """Returns the cost of so many steps; None where the updates of the arm do not fit into them."""
    try:
        return cost(steps)
    except ConfigError:
        return None
