"""``static``: the same proportions at every update. The baseline at equal steps and equal updates.

It differs from ``static_mix: true`` in that updates take place: the rows are planned at the same steps as with any
other mixer and the trace has the same lines, so that two runs differ by their proportions alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from dataflex.core.cost import Ahead, Cost
from dataflex.core.errors import Problem, listed
from dataflex.core.parameter_checks import is_number, require
from dataflex.core.registry import register_mixer
from dataflex.train.mixer.base_mixer import Mixer
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch
    from dataflex.planning.mixture import MixtureManager


def normalised(proportions: Sequence[float]) -> NDArray[np.float64]:
    """Returns the proportions divided by their sum: (K,) float64.

    Args:
        proportions: K non-negative finite numbers, not all of them zero.
    """
    shares: NDArray[np.float64] = np.asarray(proportions, dtype=np.float64)
    shares = shares / shares.max()  # so that the sum of very large numbers is finite
    result: NDArray[np.float64] = shares / shares.sum()
    return result


def _problems(key: str, proportions: object, names: Sequence[str]) -> list[Problem]:
    """Returns what is wrong with proportions; None is fine.

    Args:
        key: The parameter.
        proportions: Its value.
        names: The K sources.
    """
    if proportions is None:
        return []
    return [Problem(key, what) for what in _wrong(proportions, names)]


def _wrong(proportions: object, names: Sequence[str]) -> list[str]:
    if not isinstance(proportions, Sequence | np.ndarray) or isinstance(proportions, str):
        return [f"found {proportions!r}, allowed: a list with one number per source ({listed(names)})"]
    problems = []
    if len(proportions) != len(names):
        count = f"found {len(proportions)} numbers, allowed: {len(names)}, one per source"
        problems.append(f"{count} ({', '.join(names)})")
    bad = [p for p in proportions if not _is_share(p)]
    if bad:
        problems.append(f"found {', '.join(map(repr, bad))}, allowed: finite numbers of 0 or more")
    elif len(proportions) and not any(proportions):
        problems.append("found only zeros, allowed: at least one number above 0")
    return problems


def _is_share(value: object) -> bool:
    plain: Any = value.item() if isinstance(value, np.generic) else value
    return is_number(plain) and bool(plain >= 0)


@register_mixer("static")
class StaticMixer(Mixer):
    """The same proportions at every update.

    Args:
        mixture_manager: The sources.
        proportions: One non-negative number per source, in the order of ``mixture_manager.names``; they are divided by
            their sum. None keeps the proportions that the run began with.

    Raises:
        ConfigError: ``proportions`` has another length, holds a negative, infinite or NaN value, or only zeros.
    """

    draws = False

    def __init__(self, mixture_manager: MixtureManager, proportions: Sequence[float] | None = None) -> None:
        super().__init__(mixture_manager)
        require("static mixer", *_problems("proportions", proportions, mixture_manager.names))
        self.proportions = None if proportions is None else normalised(proportions)

    @classmethod
    def cost(cls, params: Mapping[str, Any], ahead: Ahead) -> Cost:
        """Nothing is computed. See the base class."""
        return Cost()

    def mix(self, model: torch.nn.Module, step_id: int, **kwargs: Any) -> NDArray[np.float64]:
        """Returns (K,) shares of rows; the same on every rank and at every update."""
        current = self.mixture_manager.proportions if self.proportions is None else self.proportions
        return np.array(current, dtype=np.float64)
