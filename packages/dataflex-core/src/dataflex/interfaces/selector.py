"""The interface of a selector: which rows of the train dataset does the next stretch of training see?

A selector is a class with one method:

    from dataflex.core.registry import register_selector
    from dataflex.interfaces.selector import Selector, logger

    @register_selector("longest")
    class LongestSelector(Selector):
        def select(self, model, step_id, num_samples, **kwargs):
            lengths = [len(row["input_ids"]) for row in self.dataset]
            return sorted(range(len(lengths)), key=lambda i: -lengths[i])[:num_samples]

It runs with ``train_type: dynamic_select``, ``component_name: longest``. Row numbers are those of the train dataset;
the order returned is the order of training. Every rank calls the same methods with the same arguments, and every rank
must return the same rows: draw from :meth:`Selector.generator`, and reduce what a rank computed from its shard alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from dataflex.core.component import Component
from dataflex.core.errors import ComponentError
from dataflex.core.permutation import RowOrder
from dataflex.utils.logging import logger

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

__all__ = ["Selection", "Selector", "logger"]


@dataclass(frozen=True)
class Selection:
    """Rows with the scores that chose them.

    Attributes:
        indices: (S,) row numbers, in the order of training.
        scores: (S,) score of each of these rows, or None. They are saved beside the indices and summarised in the
            trace.
        weights: (S,) how much each of these rows counts in the training loss, finite and 0 or more; None where all
            count alike. For methods that prune rows and rescale the others; the class says ``weighs = True``.
        candidates: The scores of all rows that it had to choose from: (N,), one for each row of the selector's dataset,
            NaN for one that it did not score; or (rows, scores), (P,) each, where these are few. -inf stands for never.
            None where it has none. They are only recorded: summarised in the trace, and those of the last update saved.
    """

    indices: Sequence[int] | np.ndarray
    scores: np.ndarray | None = None
    weights: np.ndarray | None = None
    candidates: np.ndarray | tuple[np.ndarray, np.ndarray] | None = None


class Selector(Component, ABC):
    """Chooses the rows of the next stretch of training.

    Args:
        dataset: The train dataset, tokenised; ``dataset[i]`` is a mapping with at least ``input_ids``.
        accelerator: The run's :class:`accelerate.Accelerator`, for the rank and for reductions.
        data_collator: Makes a batch of tensors from a list of rows; the one that training uses.
        cache_dir: A folder of the selector's own. Given without the user asking, inside ``output_dir``.

    Attributes:
        replacement: Whether a row may be returned twice. A class that has a constructor parameter of this name sets it
            from there; where it is False, asking for more rows than exist is refused before the model is loaded.
        weighs: Whether a :class:`Selection` of it may carry weights.
        gives_scores: Whether the rows that it chooses come with scores. A class that never gives any says False, and an
            order ``by: selector`` beside it is refused.
    """

    replacement: bool = False
    weighs: ClassVar[bool] = False
    gives_scores: ClassVar[bool] = True
    contract: ClassVar[str] = "it needs select(model, step_id, num_samples, **kwargs) -> row numbers"

    def __init__(
        self,
        dataset: Any,
        accelerator: Accelerator,
        data_collator: Callable[[list[Any]], Mapping[str, torch.Tensor]],
        cache_dir: str,
    ) -> None:
        self.dataset = dataset
        self.accelerator = accelerator
        self.data_collator = data_collator
        self.cache_dir = cache_dir

    @classmethod
    def accepts(cls, component: type) -> bool:
        """Returns whether ``component`` is a selector."""
        return issubclass(component, Selector)

    @abstractmethod
    def select(
        self, model: torch.nn.Module, step_id: int, num_samples: int, **kwargs: Any
    ) -> Sequence[int] | np.ndarray | Selection:
        """Returns the ``num_samples`` rows of the next stretch, in the order of training.

        Called on every rank with the model in eval mode, between two optimizer steps. Random numbers drawn from the
        global generators and the mode of the model are put back afterwards; gradients must not be left behind.

        Args:
            model: The model being trained, as the engine needs it called (sharded engines stay wrapped).
            step_id: Global optimizer steps done.
            num_samples: How many rows to return: steps of the stretch times the global batch size.
            **kwargs: ``context``, an :class:`~dataflex.core.context.UpdateContext`; more may come in later versions.
        """

    def scores(self, model: torch.nn.Module, step_id: int, **kwargs: Any) -> np.ndarray:
        """Returns the score of every row: (N,), higher is better, NaN where a row has none, -inf for never.

        Optional: ``dataflex-cli score`` calls it, training does not. Everything said of :meth:`select` holds.

        Args:
            model: The model, as :meth:`select` gets it.
            step_id: Global optimizer steps done.
            **kwargs: ``context``, an :class:`~dataflex.core.context.UpdateContext`.

        Raises:
            ComponentError: The selector gives rows no scores.
        """
        raise ComponentError(
            f"selector '{self.name}' chooses rows without giving each a score -> use one that scores them"
        )

    def details(self) -> Mapping[str, Any]:
        """Returns more keys for the trace line of the update at which :meth:`select` was last called. Optional.

        Called on every rank, right after it. Of a run with a selector for each source, the line has what each returns
        under the name of its source.

        Returns:
            Name -> a plain value: a number, a text, a list or a mapping of these.
        """
        return {}

    def warmup(self, num_samples: int, replacement: bool = False) -> Sequence[int] | np.ndarray:
        """Returns the rows of the stretch before the first update: a random order of the dataset unless overridden.

        Args:
            num_samples: How many rows to return.
            replacement: Whether rows may repeat; then the dataset is gone through again in another order.
        """
        return RowOrder(len(self.dataset), self.seed, "warmup").take(0, num_samples)
