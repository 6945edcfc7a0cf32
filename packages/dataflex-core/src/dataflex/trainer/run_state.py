"""What a checkpoint holds of a run, and what it must share with the run that resumes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dataflex.planning.run_schedule import global_batch_size
from dataflex.rows.split_sources import SplitSources
from dataflex.run.identity import (
    TRAIN_DATASET,
    identity_of_arguments,
    identity_of_evaluation,
    identity_of_rows,
    identity_of_run,
)
from dataflex.trainer.clustered_rows import STATE, KeptSources
from dataflex.trainer.host import Host
from dataflex.upstream.trl_datasets import without_reference_columns


class RunState:
    """The state of the trainer's parts.

    Args:
        trainer: The trainer.
    """

    def __init__(self, trainer: Host) -> None:
        self._trainer = trainer
        parts = {
            "segments": trainer.segments,
            "places": trainer.stream_places,
            "components": trainer.components,
            "shared_scores": trainer.shared_scores,
            "objective": trainer.training_objective,
            "trained_rows": trainer.trained_rows,
            "rollouts": trainer.rollouts,
        }
        if isinstance(trainer.train_dataset, SplitSources):
            parts[STATE] = KeptSources(trainer.train_dataset)
        self._parts: dict[str, Any] = {name: part for name, part in parts.items() if part is not None}

    def identity(self) -> dict[str, Any]:
        """Returns what a checkpoint must share with the run that resumes it; plain values. Reads some of the rows."""
        trainer = self._trainer
        spec, dataset = trainer.spec, trainer.train_dataset
        weighs = {} if spec.weighter is None else {"warmup_step": spec.arguments.warmup_step}
        return {
            **identity_of_run(spec, trainer.seed),
            **identity_of_evaluation(spec, trainer.components.injectable()),
            "arguments": identity_of_arguments(trainer.args.to_dict()),
            "data": identity_of_rows(TRAIN_DATASET, without_reference_columns(trainer.train_dataset)),
            "global_batch_size": global_batch_size(trainer.args),
            **weighs,
            **({} if trainer.rollouts is None else trainer.rollouts.identity),
            **({"row labels": dataset.digest} if isinstance(dataset, SplitSources) else {}),
        }

    def gather(self) -> None:
        """Brings together what ranks know each for itself, before a checkpoint. Collective."""
        trainer = self._trainer
        trainer.shared_scores.gather()
        if trainer.training_objective is not None:
            trainer.training_objective.settle()
        if trainer.trained_rows is not None:
            trainer.trained_rows.settle()
        if trainer.rollouts is not None:
            trainer.rollouts.gather()

    def forget(self) -> None:
        """Forgets what an earlier training by the same trainer left."""
        for name in ("segments", "shared_scores", "objective", "trained_rows", "rollouts"):
            if name in self._parts:
                self._parts[name].forget()

    def state_dict(self) -> dict[str, Any]:
        """Returns the state that goes into a checkpoint."""
        trainer = self._trainer
        return {
            "run": trainer.run_id,
            "step": trainer.state.global_step,
            "total_steps": trainer.state.max_steps,
            "identity": trainer.own_identity,
            "save_only_model": trainer.args.save_only_model,
            **{name: part.state_dict() for name, part in self._parts.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned."""
        if self._trainer.segments is not None:
            self._trainer.segments.require_continues(state["segments"], state["step"])
        for name, part in self._parts.items():
            part.load_state_dict(state[name])
