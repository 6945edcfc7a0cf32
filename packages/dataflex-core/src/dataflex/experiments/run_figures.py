"""What a finished run came to: its numbers, and what it cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dataflex.core.errors import ConfigError
from dataflex.experiments.planned_runs import ALL_RESULTS, TRAINER_STATE, PlannedRun, read_json

RUN = "dataflex_run.json"
START = "=== dataflex-cli compare starts this run"
"""Begins the line that the log has for each start."""


@dataclass(frozen=True)
class RunFigures:
    """A run's figures.

    Attributes:
        numbers: Every number of ``all_results.json``, NaN where it is none that can be compared.
        steps: Optimizer steps done.
        tokens: Tokens trained on, padding left out where the installed transformers can; None where nobody counted.
        seconds: From the first step to the last, updates included; None where it was stopped and no record has them.
    """

    numbers: Mapping[str, float] = field(default_factory=dict)
    steps: int | None = None
    tokens: int | None = None
    seconds: float | None = None


def figures(run: PlannedRun) -> RunFigures:
    """Returns the figures of a finished run.

    Tokens come from ``trainer_state.json`` where that has them, which counts alike for every train type, else from the
    record of a dynamic run.
    """
    results, state = read_json(run.folder / ALL_RESULTS), read_json(run.folder / TRAINER_STATE)
    record = read_json(run.folder / RUN)
    numbers = {
        key: float(value)
        for key, value in results.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    steps, tokens = state.get("global_step"), state.get("num_input_tokens_seen") or record.get("tokens")
    return RunFigures(
        numbers,
        steps if isinstance(steps, int) else None,
        int(tokens) if isinstance(tokens, int | float) and tokens > 0 else None,
        _seconds(run.log, numbers, record.get("seconds")),
    )


def _seconds(log: Path, numbers: Mapping[str, float], record: object) -> float | None:
    """Returns the seconds of training: ``train_runtime`` has those of the last start alone."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    if text.count(START) <= 1:
        return numbers.get("train_runtime")
    known = (
        [record.get(key) for key in ("training", "deciding", "saving", "evaluating")]
        if isinstance(record, Mapping)
        else []
    )
    return float(sum(each for each in known if isinstance(each, int | float))) if known else None


_LOWER = ("loss", "perplexity", "ppl", "error", "wer", "cer", "runtime", "flos", "seconds", "mae", "mse", "rmse")
_HIGHER = (
    "accuracy", "acc", "f1", "bleu", "bleu-4", "rouge", "rouge-1", "rouge-2", "rouge-l", "precision", "recall",
    "reward", "score", "per_second", "match", "pass", "win_rate",
)  # fmt: skip


def lower_is_better(metric: str, said: bool | None) -> bool:
    """Returns which way a metric is better, by what the file says, else by how its name ends.

    Raises:
        ConfigError: Neither tells.
    """
    if said is not None:
        return said
    name = metric.lower()
    for ends, lower in ((_HIGHER, False), (_LOWER, True)):  # steps_per_second before seconds
        if any(name == end or name.endswith(("_" + end, "/" + end)) for end in ends):
            return lower
    raise ConfigError(
        f"metrics.{metric}: its name does not tell whether lower or higher is better -> write metrics: {{{metric}: "
        "lower}, or higher"
    )


def metrics_found(asked: Mapping[str, bool | None], found: Mapping[str, RunFigures]) -> dict[str, bool]:
    """Returns metric -> whether lower is better; the loss of each evaluation set where none is asked for.

    Args:
        asked: The metrics of the file.
        found: Name of a run -> its figures.

    Raises:
        ConfigError: No run has a metric that is asked for.
    """
    known = {name for run in found.values() for name, value in run.numbers.items() if not math.isinf(value)}
    if not asked:
        losses = [name for name in sorted(known) if name.startswith("eval_") and name.endswith("loss")]
        of_sets = [
            name for name in losses if name != "eval_loss"
        ]  # beside them it is their mean, in dynamic runs alone
        return dict.fromkeys(of_sets or losses, True)
    missing = [name for name in asked if name not in known]
    if missing and found:
        has = ", ".join(sorted(known)) or "no number"
        raise ConfigError(
            f"metrics: {missing[0]}: no run has it in {ALL_RESULTS}; they have {has} -> name one of these"
        )
    return {name: lower_is_better(name, said) for name, said in asked.items()}
