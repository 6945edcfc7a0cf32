"""The simplest useful selector: a starting point to copy.

It goes through the dataset in file order, or from the last row to the first, and continues at each update where the
last one stopped. To make your own: copy this file, change the name in ``@register_selector``, write ``select``, and
name the file under ``plugins:`` in the YAML of the run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from dataflex.core.parameter_checks import one_of, require
from dataflex.core.registry import register_selector
from dataflex.train.selector.base_selector import Selector
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch


@register_selector("custom")
class CustomSelector(Selector):
    """Takes the rows in file order.

    Parameters of your own come from ``params:`` in ``components.yaml``. What the run gives to every selector passes
    through ``**run`` to the base class, which keeps it: ``self.dataset``, ``self.accelerator``, ``self.data_collator``
    and ``self.cache_dir``.

    Args:
        order: ``forward`` starts at the first row, ``backward`` at the last.
        **run: What every selector is given, see :class:`~dataflex.interfaces.selector.Selector`.

    Raises:
        ConfigError: ``order`` is neither.
    """

    gives_scores: ClassVar[bool] = False

    def __init__(self, *, order: str = "forward", **run: Any) -> None:
        super().__init__(**run)
        require("custom selector", one_of("order", order, ("forward", "backward")))
        self.order = order
        self._cursor = 0  # rows given so far

    def select(self, model: torch.nn.Module, step_id: int, num_samples: int, **kwargs: Any) -> NDArray[np.int64]:
        """Returns the next ``num_samples`` rows, going round at the end. See the base class."""
        size = len(self.dataset)
        positions = (self._cursor + np.arange(num_samples)) % size
        self._cursor += num_samples
        return positions if self.order == "forward" else size - 1 - positions

    def state_dict(self) -> dict[str, Any]:
        """Returns the position, which every checkpoint keeps."""
        return {"cursor": self._cursor}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned, when a run is resumed."""
        self._cursor = int(state["cursor"])
