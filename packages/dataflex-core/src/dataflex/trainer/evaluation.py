"""One number for an evaluation of several datasets, beside those of each.

``transformers`` evaluates a mapping of datasets one by one and has no ``eval_loss`` then, so ``metric_for_best_model``,
early stopping and ReduceLROnPlateau find nothing. The number for all is the mean over their rows,

    eval_loss = sum_k rows_k * eval_<k>_loss / sum_k rows_k

which is what the evaluation of all rows as one dataset gives, but for the batches that would hold rows of two datasets
(``transformers`` takes the mean over the tokens of a batch, and the mean of that over rows). Other numbers that every
dataset has, such as an accuracy, are averaged in the same way; times and speeds are not.

With ``objective_proportions`` w, and a dataset for each source that has a share in them, there is one more:

    eval_objective_loss = sum_k w_k * eval_<k>_loss                            sum of w: 1
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from transformers import EarlyStoppingCallback

from dataflex.config.checks.source_keys import METRIC, best_metric_problems
from dataflex.core.errors import ConfigError, listed, refuse
from dataflex.planning.mixture import MixtureManager
from dataflex.trainer.host import Host
from dataflex.utils.logging import logger

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


def by_objective(metrics: Mapping[str, Any], objective: Mapping[str, float], prefix: str) -> dict[str, float]:
    """Returns the held-out loss by the shares of an objective; nothing where a source with a share has no loss.

    Args:
        metrics: As for :func:`over_rows`.
        objective: Source -> its share; empty for no objective.
        prefix: ``eval``.
    """
    losses = {name: metrics.get(f"{prefix}_{name}_loss") for name, share in objective.items() if share > 0}
    if not losses or not all(isinstance(loss, int | float) for loss in losses.values()):
        return {}
    return {f"{prefix}_{METRIC}": sum(objective[name] * float(loss or 0.0) for name, loss in losses.items())}


def require_objective_metric(trainer: Host, objective: Mapping[str, float]) -> None:
    """Refuses to look for the best model by a loss that no evaluation gives; says where none is weighed.

    Args:
        trainer: The trainer.
        objective: Source -> its share; empty for no objective.

    Raises:
        ConfigError: With the way out.
    """
    given, wanted = trainer.eval_dataset, trainer.args.metric_for_best_model
    refuse(best_metric_problems(objective or None, {"metric_for_best_model": wanted}))
    if not objective or given is None:
        return
    names = given if isinstance(given, Mapping) else {}
    missing = [name for name, share in objective.items() if share > 0 and name not in names]
    if not missing:
        return
    what = f"eval_{METRIC} needs held-out rows of each source, and eval_dataset has none of {listed(missing)}"
    if wanted in (METRIC, f"eval_{METRIC}"):
        raise ConfigError(f"metric_for_best_model: {what} -> name its sets as the sources, or set val_size")
    logger.warning("%s: it is not computed -> name the sets of eval_dataset as the sources, or set val_size", what)


def evaluate_all(
    trainer: Trainer,
    evaluate: Callable[[], dict[str, float]],
    rows: Callable[[], Mapping[str, int]],
    prefix: str,
    objective: Mapping[str, float],
) -> dict[str, float]:
    """Evaluates several datasets one by one, logs the numbers for all of them and tells the callbacks.

    Called on every rank; the losses of each dataset are those of all ranks already.

    Args:
        trainer: The trainer.
        evaluate: Evaluates each dataset as the trainer underneath does.
        rows: Returns the rows of each that were evaluated, afterwards.
        prefix: ``eval``.
        objective: Source -> its share in the objective; empty for none.

    Returns:
        The numbers of each dataset and those for all.
    """
    with _without_early_stopping(trainer):
        metrics = evaluate()
    whole = over_rows(metrics, rows(), prefix) | by_objective(metrics, objective, prefix)
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
        objective: Source -> its share in the loss, where ``objective_proportions`` give shares; else empty.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self.rows: dict[str, int] = {}
        self.objective: Mapping[str, float] = {}

    def weigh(self, mixture: MixtureManager | None) -> None:
        """Takes the shares of the objective, once the sources are known.

        Args:
            mixture: The sources; None where there are none.

        Raises:
            ConfigError: The best model is to be found by a loss that no evaluation gives.
        """
        self.objective = {} if mixture is None else mixture.objective_by_name()
        require_objective_metric(self._trainer, self.objective)  # type: ignore[arg-type]  # a trainer of ours

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
        counted = lambda: {name: self.rows[f"{prefix}_{name}"] for name in found}  # noqa: E731  # known afterwards
        return evaluate_all(self._trainer, evaluate, counted, prefix, self.objective)


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
