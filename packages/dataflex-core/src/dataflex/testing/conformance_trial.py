"""One small run of a component under test, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dataflex.core.component import Component
from dataflex.core.kinds import MIXER, ORDER, SELECTOR, WEIGHTER, Kind
from dataflex.run.record import read_trace
from dataflex.testing.call_watch import CallWatch
from dataflex.testing.conformance_doubles import DOUBLES
from dataflex.testing.conformance_subject import BATCH, STEPS, Subject
from dataflex.testing.small_online import small_online_trainer
from dataflex.testing.small_trainers import small_trainer

SAVED = 3
"""The step at which a checkpoint is written: inside of a segment, after the first update."""
_OF_THE_RECORD = ("seconds", "update", "decision_hash")


@dataclass
class Outcome:
    """What a run left. It can be sent between processes.

    Attributes:
        segments: File -> its arrays: rows, scores and weights of a segment.
        lines: The trace, without what two equal runs differ in.
        losses: The loss of each step.
        end: Name -> weights and the optimizer's numbers when it ended.
        state: What the component remembered at the end; None where it keeps none.
        changed: What it changed that is not its own.
        drew: How often it asked for its generator.
        decided: How often it decided.
        repeats: Of a selector, whether it may return a row twice.
    """

    segments: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    lines: list[dict[str, Any]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    end: dict[str, torch.Tensor] = field(default_factory=dict)
    state: Any = None
    changed: list[str] = field(default_factory=list)
    drew: int = 0
    decided: int = 0
    repeats: bool = False


def made(
    subject: Subject,
    folder: Path,
    *,
    ranks: int = 1,
    accumulation: int | None = None,
    combined: bool = False,
    **changes: Any,
) -> Any:
    """Returns the trainer of a run.

    Args:
        subject: The component.
        folder: The folder of the run.
        ranks: How many processes train; a step has as many rows whatever they are.
        accumulation: Micro-batches of a step on a rank; None for as many as make the same micro-batches on any ranks.
        combined: Whether a double of each other kind takes part.
        **changes: Keywords of ``dynamic`` in place of :data:`STEPS`.
    """
    accumulation = 2 // ranks if accumulation is None else accumulation
    args: dict[str, Any] = {
        "per_device_train_batch_size": BATCH // accumulation // ranks,
        "gradient_accumulation_steps": accumulation,
    }
    args |= {"save_strategy": "steps", "save_steps": SAVED, "learning_rate": 1e-2}
    args |= {"average_tokens_across_devices": True, "logging_nan_inf_filter": False}
    steps: dict[str, Any] = STEPS | dict(subject.keys) | changes
    kinds = {kind: {"name": double} for kind, double in _beside(subject).items()} if combined else {}
    parts = {kind.name: part for kind, part in (kinds | {subject.kind: subject.part}).items()}
    if set(parts) == {WEIGHTER.name}:
        total = steps.pop("warmup_step") + steps.pop("update_step") * steps.pop("update_times")
        steps |= {"train_step": total, "warmup_step": min(2, total // 3)}
    mixes = MIXER.name in parts
    given: dict[str, Any] = {"mixture_sample_rule": "uniform"} if mixes else {}
    if "eval_dataset" in subject.asks_for:
        given["eval_dataset"] = subject.target_rows()
    if "mixer_eval_dataset" in subject.asks_for:
        given["mixer_eval_dataset"] = subject.held_out_rows()
    rows = subject.source_rows() if mixes or subject.by_source else subject.train_rows()
    if subject.takes_rewards:
        answering = subject.model if subject.model is None else subject.made_model()
        of_run = args | dict(subject.arguments)
        return small_online_trainer(folder, rows, model=answering, args=of_run, **steps, **given, **parts)
    return small_trainer(
        folder,
        rows,
        model=subject.made_model(),
        args=args | dict(subject.arguments),
        data_collator=subject.collator,
        processing_class=subject.made_tokenizer(),
        **steps, **given, **parts,
    )  # fmt: skip


def _beside(subject: Subject) -> dict[Kind, type[Any]]:
    """Returns the doubles that can stand beside the component; none that chooses where rows of a pass are arranged."""
    whole_pass = subject.kind is ORDER and subject.cls.over == "run"
    return {
        kind: double
        for kind, double in DOUBLES.items()
        if kind is not subject.kind
        and not (whole_pass and kind is SELECTOR)
        and not (subject.takes_rewards and kind is WEIGHTER)  # the loss is that of answers
        and (subject.beside is None or kind.name in subject.beside)
    }


def of_subject(trainer: Any, subject: Subject) -> list[Any]:
    """Returns the component under test; one for each source where it chooses inside of a mixture."""
    return [component for part, component in trainer.components if part.component.kind is subject.kind]


def run(
    subject: Subject,
    folder: Path,
    *,
    resume: Path | None = None,
    scrambled: bool = False,
    prepared: Callable[[Any], None] = lambda trainer: None,
    **how: Any,
) -> Outcome:
    """Returns what came of a run.

    Args:
        subject: The component.
        folder: The folder of the run.
        resume: A checkpoint to resume from.
        scrambled: Whether global generators are set to something else before each decision.
        prepared: Called with the trainer before it trains.
        **how: As for :func:`made`.
    """
    trainer = made(subject, folder, **how)
    watch = CallWatch(trainer, subject.kind, scrambled)
    components = of_subject(trainer, subject)
    for component in components:
        watch.stand_before(component)
    prepared(trainer)
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    first = components[0]
    return Outcome(
        {path.name: dict(np.load(path)) for path in sorted(Path(folder, "dataflex_selections").glob("*.npz"))},
        [_plain(line) for line in read_trace(folder)],
        [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        _end(trainer),
        first.state_dict() if isinstance(first, Component) else None,
        list(watch.changed),
        watch.drew,
        watch.decided,
        bool(first.replacement) if subject.kind is SELECTOR else False,
    )


def _plain(line: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in line.items() if key not in _OF_THE_RECORD}


def _end(trainer: Any) -> dict[str, torch.Tensor]:
    tensors = {f"weight {name}": value for name, value in trainer.model.state_dict().items()}
    for number, state in trainer.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer {number} {name}": torch.as_tensor(value) for name, value in state.items()}
    return {name: value.detach().cpu().clone() for name, value in tensors.items()}
