"""One number for an evaluation of several datasets, beside those of each.

``transformers`` evaluates a mapping of datasets one by one and has no ``eval_loss`` then, so ``metric_for_best_model``,
early stopping and ReduceLROnPlateau find nothing. The number for all is the mean over their rows,

    eval_loss = sum_k rows_k * eval_<k>_loss / sum_k rows_k

which is what the evaluation of all rows as one dataset gives, but for the batches that would hold rows of two datasets
(``transformers`` takes the mean over the tokens of a batch, and the mean of that over rows). Other numbers that every
dataset has, such as an accuracy, are averaged in the same way; times and speeds are not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from transformers import EarlyStoppingCallback

if TYPE_CHECKING:
    from transformers import Trainer

OF_THE_MACHINE = (
    "_runtime", "_per_second", "_model_preparation_time", "_jit_compilation_time", "_mem_cpu_alloc_delta",
    "_mem_gpu_alloc_delta", "_mem_cpu_peaked_delta", "_mem_gpu_peaked_delta",
)  # fmt: skip
"""Ends of the names of numbers that are no property of the rows."""


def over_rows(metrics: Mapping[str, Any], rows: Mapping[str, int], prefix: str) -> dict[str, float]:
    """Returns the mean over rows of each number that every dataset has.

    Args:
        metrics: ``<prefix>_<dataset>_<name>`` -> number, as ``evaluate`` returned them.
        rows: Dataset -> the rows that were evaluated; those without rows say nothing.
        prefix: ``eval``.
    """
    own = {name: f"{prefix}_{name}_" for name, count in rows.items() if count}
    if not own:
        return {}
    first = next(iter(own.values()))
    found = {}
    for key, value in metrics.items():
        name = key.removeprefix(first)
        numbers = [metrics.get(start + name) for start in own.values()]
        shared = key.startswith(first) and all(isinstance(number, int | float) for number in numbers)
        if shared and isinstance(value, int | float) and not key.endswith(OF_THE_MACHINE):
            weighed = sum(metrics[start + name] * rows[dataset] for dataset, start in own.items())
            found[f"{prefix}_{name}"] = weighed / sum(rows[dataset] for dataset in own)
    return found


def evaluate_all(
    trainer: Trainer, evaluate: Callable[[], dict[str, float]], rows: Callable[[], Mapping[str, int]], prefix: str
) -> dict[str, float]:
    """Evaluates several datasets one by one, logs the numbers for all of them and tells the callbacks.

    Called on every rank; the losses of each dataset are those of all ranks already.

    Args:
        trainer: The trainer.
        evaluate: Evaluates each dataset as the trainer underneath does.
        rows: Returns the rows of each that were evaluated, afterwards.
        prefix: ``eval``.

    Returns:
        The numbers of each dataset and those for all.
    """
    with _without_early_stopping(trainer):
        metrics = evaluate()
    whole = over_rows(metrics, rows(), prefix)
    trainer.log(dict(whole))
    metrics |= whole
    trainer.control = trainer.callback_handler.on_evaluate(trainer.args, trainer.state, trainer.control, metrics)
    return metrics


class Evaluation:
    """Evaluates one dataset, or several with the numbers for all of them.

    Args:
        trainer: The trainer.

    Attributes:
        rows: Prefix of a metric -> how many rows were evaluated.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self.rows: dict[str, int] = {}

    def of(self, evaluate: Callable[[], dict[str, float]], given: Any, prefix: str) -> dict[str, float]:
        """Returns the numbers of an evaluation. On every rank.

        Args:
            evaluate: Evaluates as the trainer underneath does.
            given: What is evaluated; None for the trainer's own.
            prefix: ``eval``.
        """
        found: Any = self._trainer.eval_dataset if given is None else given
        if not isinstance(found, Mapping):
            return evaluate()
        return evaluate_all(
            self._trainer, evaluate, lambda: {name: self.rows[f"{prefix}_{name}"] for name in found}, prefix
        )


@contextmanager
def _without_early_stopping(trainer: Trainer) -> Iterator[None]:
    """Keeps early stopping from the numbers of single datasets: it counts evaluations, and all of them are one."""
    handler = trainer.callback_handler
    before = list(handler.callbacks)
    handler.callbacks[:] = [callback for callback in before if not isinstance(callback, EarlyStoppingCallback)]
    try:
        yield
    finally:
        handler.callbacks[:] = before
