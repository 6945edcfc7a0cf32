"""Random rows: the baseline that every other selector must beat at equal tokens.

Without replacement, all stretches together, warm-up included, read the dataset in one shuffled pass after another. So
no row comes again before every row was seen. A stretch that crosses from one pass into the next must not hold a row
twice: rows that it already has move to the end of the new pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from dataflex.core.cost import Ahead, Cost
from dataflex.core.parameter_checks import flag, require
from dataflex.core.permutation import RowOrder
from dataflex.core.registry import register_selector
from dataflex.train.selector.base_selector import Selector
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch


@register_selector("random")
class RandomSelector(Selector):
    """Picks rows at random.

    Args:
        replacement: False goes through the whole dataset before a row comes again; True draws each row independently.
        **run: What every selector is given, see :class:`~dataflex.interfaces.selector.Selector`.

    Raises:
        ConfigError: ``replacement`` is not a boolean.
    """

    gives_scores: ClassVar[bool] = False

    def __init__(self, *, replacement: bool = False, **run: Any) -> None:
        super().__init__(**run)
        require("random selector", flag("replacement", replacement))
        self.replacement = replacement
        self._cursor = 0  # rows given so far
        self._late: NDArray[np.int64] = np.empty(0, dtype=np.int64)  # rows that this pass has at its end

    @classmethod
    def cost(cls, params: Mapping[str, Any], ahead: Ahead) -> Cost:
        """Nothing is computed. See the base class."""
        return Cost()

    def select(self, model: torch.nn.Module, step_id: int, num_samples: int, **kwargs: Any) -> NDArray[np.int64]:
        """Returns the next ``num_samples`` rows of the shuffled passes, or independent draws. See the base class."""
        if self.replacement:
            return self.generator(kwargs["context"].update).integers(len(self.dataset), size=num_samples)
        return self._take(num_samples)

    def warmup(self, num_samples: int, replacement: bool = False) -> NDArray[np.int64]:
        """Returns the rows of the warm-up: those that any selector's default warm-up has. See the base class."""
        if replacement:
            return RowOrder(len(self.dataset), self.seed, "warmup").take(0, num_samples)
        return self._take(num_samples)

    def _take(self, count: int) -> NDArray[np.int64]:
        size = len(self.dataset)
        order = RowOrder(size, self.seed, "warmup")  # the default warm-up's key: the updates continue where it stops
        taken: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        while len(taken) < count:
            number, offset = divmod(self._cursor, size)
            if offset == 0:
                self._late = taken
            part = _one_pass(order, number, self._late, offset, count - len(taken))
            self._cursor += len(part)
            taken = np.concatenate([taken, part])
        return taken

    def state_dict(self) -> dict[str, Any]:
        """Returns the position."""
        return {"cursor": self._cursor, "late": self._late}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned."""
        self._cursor, self._late = int(state["cursor"]), np.asarray(state["late"], dtype=np.int64)


def _one_pass(order: RowOrder, number: int, late: NDArray[np.int64], offset: int, count: int) -> NDArray[np.int64]:
    """Returns the rows of a pass from ``offset`` on, at most ``count``, where those of ``late`` come at its end.

    Memory is that of the rows asked for and of ``late``, not of the pass: the order says where a row of ``late`` would
    come, and a row that comes after n of them has moved up by n places.
    """
    end = min(offset + count, order.size)
    gaps = np.sort(order.places(np.unique(late), number))
    early = order.size - len(gaps)
    wanted = np.arange(offset, min(end, early))
    wanted += np.searchsorted(gaps - np.arange(len(gaps)), wanted, side="right")
    places = np.concatenate([wanted, gaps[max(0, offset - early) : max(0, end - early)]])
    return order.at(number * order.size + places)
