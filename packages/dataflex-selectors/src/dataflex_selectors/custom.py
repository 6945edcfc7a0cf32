"""The simplest selector that is of any use: a starting point to copy.

It goes through the dataset in file order, or from the last row to the first, and continues at each update where the
last one stopped. To make your own: copy this file, change the name in ``@register_selector``, write ``select``, and
name the file under ``plugins:`` in the YAML of the run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from dataflex.core.parameter_checks import one_of, require
from dataflex.core.registry import register_selector
from dataflex.train.selector.base_selector import Selector
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator


@register_selector("custom")
class CustomSelector(Selector):
    """Takes the rows in file order.

    The first four parameters are given to every selector that names them; those after them come from ``params:`` in
    ``components.yaml``.

    Args:
        dataset: The train dataset, tokenised.
        accelerator: The run's accelerator.
        data_collator: Makes a batch of tensors from a list of rows.
        cache_dir: A folder of the selector's own.
        order: ``forward`` starts at the first row, ``backward`` at the last.

    Raises:
        ConfigError: ``order`` is neither.
    """

    gives_scores: ClassVar[bool] = False

    def __init__(
        self,
        dataset: Any,
        accelerator: Accelerator,
        data_collator: Callable[[list[Any]], Mapping[str, torch.Tensor]],
        cache_dir: str,
        order: str = "forward",
    ) -> None:
        super().__init__(dataset, accelerator, data_collator, cache_dir)
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
