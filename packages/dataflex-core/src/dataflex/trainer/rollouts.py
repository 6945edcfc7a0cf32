"""The answers that a trainer samples while it trains: when it samples, their rewards by prompt, and who is told.

Only TRL's GRPO and RLOO have this part (:mod:`dataflex.upstream.online_trainers`). The rewards are those that training
computes anyway; no answer is sampled for us.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from accelerate.utils import gather_object

from dataflex.core.errors import CheckpointError, ComponentError, blaming, refuse
from dataflex.core.schedule import Schedule
from dataflex.planning.step_rows import StepRows
from dataflex.rows.row_numbers import ROW_NUMBERS
from dataflex.rows.source_table import SourceTable
from dataflex.run.run_facts import dataset_name
from dataflex.scoring.group_spreads import GroupSpreads, of_generation
from dataflex.scoring.seen_rewards import SeenRewards
from dataflex.trainer.host import Host
from dataflex.upstream.online_trainers import (
    Generation,
    left_of_generation,
    online_stage,
    require_known,
    reward_weights,
    set_position,
    total_rewards,
)


class Rollouts:
    """What is known of the answers that were sampled. Its methods are called on every rank.

    Args:
        trainer: The trainer, when the one underneath has been made.

    Attributes:
        generation: How often it samples, and for how many prompts.
        rewards: The rewards of the answers to each prompt.
        totals: What is collected for the next line of the record.
    """

    KIND = "reward"
    """The kind of its lines in the trace."""

    def __init__(self, trainer: Host) -> None:
        require_known(type(trainer))
        self._trainer = trainer
        self.generation = Generation.of(trainer.args)
        self.rewards = SeenRewards(len(trainer.train_dataset))
        self._table = SourceTable(trainer.train_dataset, dataset_name(trainer.spec), trainer.row_sources)
        sources = len(self._table.names)
        self.totals, self._step = GroupSpreads(sources), GroupSpreads(sources)
        self._rows: list[int] | None = None  # of the batch that answers are sampled for; None in an evaluation
        self._left: list[Any] | None = None  # of the generation, of each rank

    @classmethod
    def of(cls, trainer: Host) -> Rollouts | None:
        """Returns what is known of the answers of a trainer that samples any."""
        return None if online_stage(type(trainer)) is None else cls(trainer)

    @property
    def identity(self) -> dict[str, Any]:
        """What a checkpoint and the run that resumes it share: rewards of another measure are not to be added up."""
        return {"generation": self.generation.identity, "rewards": reward_weights(self._trainer)}

    @property
    def step_rows(self) -> StepRows:
        """How many prompts optimizer steps take."""
        return StepRows(self.generation.prompts, self.generation.every, self.generation.accumulation)

    def require_boundaries(self, schedule: Schedule) -> None:
        """Refuses a schedule with an update inside of a generation.

        Raises:
            InvalidConfigError: With the numbers.
        """
        refuse(boundary_problems(self.generation, schedule.warmup, schedule.interval, schedule.updates))

    def begin(self) -> None:
        """Training begins, or goes on from a checkpoint: the trainer counts from there."""
        trainer = self._trainer
        left = None if self._left is None else self._left[trainer.accelerator.process_index]
        set_position(trainer, trainer.state.global_step * self.generation.accumulation, left)
        self._left = None
        trainer.record.take_back(self.KIND, self.totals.first)

    def take(self, inputs: Any) -> None:
        """Takes the row numbers out of a batch, before the trainer sees it.

        Args:
            inputs: Rows, (B,) mappings; what an evaluation has holds no numbers.
        """
        numbered = (
            isinstance(inputs, list) and bool(inputs) and isinstance(inputs[0], dict) and ROW_NUMBERS in inputs[0]
        )
        self._rows = [int(row.pop(ROW_NUMBERS)) for row in inputs] if numbered else None

    def rewarded(self, rewards_GF: torch.Tensor) -> None:
        """Keeps the rewards of a generation. Collective.

        Args:
            rewards_GF: (G, F) what the reward functions gave, gathered over ranks in their order.
        """
        if self._rows is None:
            return
        trainer, step = self._trainer, self._trainer.state.global_step
        rows = torch.tensor(self._rows, dtype=torch.int64, device=trainer.accelerator.device)
        rows_G = torch.as_tensor(trainer.accelerator.gather(rows)).cpu().numpy()
        rewards_G = total_rewards(trainer, rewards_GF).float().cpu().numpy()
        if len(rows_G) != len(rewards_G):
            raise ComponentError(
                f"the trainer computed {len(rewards_G)} rewards for {len(rows_G)} answers over all ranks, so it is not "
                "known whose they are -> return the rewards of all ranks from _calculate_rewards, one per answer"
            )
        self.rewards.add(rows_G, rewards_G, step)
        sums = of_generation(rows_G, rewards_G, self._table.of(rows_G), len(self._table.names))
        self.totals.add(sums, step)
        self._step.add(sums, step)

    def step_done(self) -> None:
        """Tells the mixer how much the rewards of each source spread in the step; NaN where none was sampled."""
        trainer, mixer = self._trainer, self._trainer.components.observing_mixer
        if mixer is not None:
            step, (spread_K, answers_K) = trainer.state.global_step, self._step.means()
            with blaming(f"mixer '{mixer.name}' at step {step}"):
                mixer.observe(step, spread_K, answers_K)
        self._step.forget()

    def training_done(self) -> None:
        """Tells the mixer that the run is over."""
        mixer, step = self._trainer.components.observing_mixer, self._trainer.state.global_step
        if mixer is not None:
            with blaming(f"mixer '{mixer.name}' at step {step}"):
                mixer.finish(step)

    def line(self) -> dict[str, Any]:
        """Returns what the rewards were since the last line, for the trace; empty where nothing was sampled."""
        first, done = self.totals.first, self._trainer.state.global_step
        if first is None:
            return {}
        return {
            "step": done - 1,
            "kind": self.KIND,
            "steps": done - first,
            "sources": _rounded(self.totals.taken(self._table.names)),
        }

    def gather(self) -> None:
        """Brings together what is left of the generation on each rank, before a checkpoint. Collective."""
        left = left_of_generation(self._trainer)
        self._left = None if left is None else gather_object([left])

    def forget(self) -> None:
        """Forgets what an earlier training by the same trainer left."""
        self.rewards.forget()
        self.totals.forget()
        self._step.forget()
        self._left = None

    def state_dict(self) -> dict[str, Any]:
        """Returns what goes into a checkpoint, after :meth:`gather`."""
        left, self._left = self._left, None
        return {"rewards": self.rewards.state_dict(), "totals": self.totals.state_dict(), "left": left}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned.

        Raises:
            CheckpointError: It lies inside of a generation that other ranks have sampled.
        """
        left, ranks = state["left"], self._trainer.accelerator.num_processes
        if left is not None and len(left) != ranks:
            raise CheckpointError(
                f"the checkpoint lies inside of a generation, whose answers {len(left)} ranks have, and {ranks} go on "
                f"-> go on with {len(left)}, or resume from one after a multiple of {self.generation.unit} steps"
            )
        self.rewards.load_state_dict(state["rewards"])
        self.totals.load_state_dict(state["totals"])
        self._left = left


def boundary_problems(generation: Generation, warmup: int, interval: int, updates: int) -> list[Any]:
    """Returns a problem for each key of a schedule with which an update would fall inside of a generation.

    Args:
        generation: How often the trainer samples.
        warmup: ``warmup_step``.
        interval: ``update_step``.
        updates: Updates of the run; without any, both say nothing.
    """
    if not updates:
        return []
    found = [generation.boundary("warmup_step", warmup)]
    found += [generation.boundary("update_step", interval)] if updates != 1 else []
    return [problem for problem in found if problem is not None]


def _rounded(sources: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    return {
        name: {key: float(f"{value:.9g}") if isinstance(value, float) else value for key, value in own.items()}
        for name, own in sources.items()
    }
