"""TRL's trainers that sample answers while they train, GRPO and RLOO, as far as a planned run must know.

A row of their train dataset is a prompt. One generation samples ``num_generations`` answers to each of
``generation_batch_size / num_generations`` prompts, over all ranks, and is trained on for ``steps_per_generation``
micro-batches, ``num_iterations`` times over. Their loader gives the whole generation batch at each of these
micro-batches, and the trainer samples at the first of them:

    micro-batches     | 0 1 2 3 | 4 5 6 7 | ...       steps_per_generation x num_iterations = 4
    optimizer steps   |  0   1  |  2   3  | ...       gradient_accumulation_steps = 2

* Their sampler (``_get_train_sampler``) repeats the prompts and lays them out over ranks. A planned run gives it the
  prompts of a segment, in the order of the plan, and leaves the rest to it.
* The rewards are gathered over all ranks where they are computed (``_calculate_rewards``), in the order of ranks.
* Which micro-batch comes next is counted in ``_step``, and what is left of a generation is in ``_buffered_inputs``. A
  trainer that is resumed begins at 0, without any, and so would sample anew, and at other micro-batches than its
  sampler changes prompts.

Letters: G answers of a generation over all ranks, F reward functions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from packaging.version import Version

from dataflex.core.errors import ConfigError, Problem, listed
from dataflex.discovery.installed import version_of
from dataflex.upstream.relied_on import require_rollouts

ONLINE: Mapping[str, str] = {
    "trl.trainer.grpo_trainer.GRPOTrainer": "grpo",
    "trl.trainer.rloo_trainer.RLOOTrainer": "rloo",
}
"""The trainers -> their stage."""
LEAST = "0.24.0"
"""The first release of TRL in which both are known."""
_STANDS_ON = ("_get_train_sampler", "_prepare_inputs", "get_train_dataloader")


@dataclass(frozen=True)
class Generation:
    """How often a trainer samples, and for how many prompts.

    Attributes:
        prompts: Prompts of a generation, over all ranks.
        answers: Answers to each.
        every: Micro-batches of a rank that are trained on before the next generation.
        accumulation: Micro-batches of an optimizer step.
    """

    prompts: int
    answers: int
    every: int
    accumulation: int

    @classmethod
    def of(cls, args: Any) -> Generation:
        """Returns that of a GRPOConfig or RLOOConfig."""
        return cls(
            prompts=args.generation_batch_size // args.num_generations,
            answers=args.num_generations,
            every=args.steps_per_generation * args.num_iterations,
            accumulation=args.gradient_accumulation_steps,
        )

    @property
    def identity(self) -> dict[str, Any]:
        """Which prompts a step trains on, however it is split: what a checkpoint and the run that resumes it share."""
        steps = str(Fraction(self.every, self.accumulation))
        return {"prompts": self.prompts, "num_generations": self.answers, "steps": steps}

    @property
    def unit(self) -> int:
        """The fewest optimizer steps after which a generation begins with a step."""
        return self.every // math.gcd(self.every, self.accumulation)

    def boundary(self, key: str, steps: int) -> Problem | None:
        """Returns a problem where an update after so many steps would fall inside of a generation.

        Args:
            key: The key that says how many.
            steps: Optimizer steps.
        """
        if steps % self.unit == 0:
            return None
        lower, upper = steps // self.unit * self.unit, -(-steps // self.unit) * self.unit
        what = (
            f"is {steps}, and the trainer samples answers for {self.every} micro-batches (steps_per_generation x "
            f"num_iterations), of which {self.accumulation} are a step: an update can choose prompts after a multiple "
            f"of {self.unit} steps"
        )
        ways = f"{key}: {upper}" if lower == 0 else f"{key}: {lower} or {upper}"
        return Problem(key, what, f"set {ways}, or another steps_per_generation or gradient_accumulation_steps")


def online_stage(trainer: type) -> str | None:
    """Returns the stage of a trainer's class, ``grpo`` or ``rloo``; None for one that samples no answers."""
    for each in trainer.__mro__:
        stage = ONLINE.get(f"{each.__module__}.{each.__qualname__}")
        if stage is not None:
            return stage
    return None


def require_known(trainer: type) -> None:
    """Refuses a trainer whose prompts cannot be planned.

    Args:
        trainer: A class for which :func:`online_stage` is not None.

    Raises:
        ConfigError: It is of an older TRL, or overrides how prompts become batches.
        IncompatiblePackagesError: TRL has not what this module relies on.
    """
    release = version_of("trl")
    if release is None or Version(release) < Version(LEAST):
        raise ConfigError(f"trl: found {release}, and prompts are planned from {LEAST} on -> install a newer trl")
    place = next(place for place, each in enumerate(trainer.__mro__) if _is_entry(each))
    known = trainer.__mro__[place]
    for each in trainer.__mro__[:place]:
        changed = [name for name in _STANDS_ON if name in vars(each)]
        if changed and not each.__module__.startswith("dataflex."):
            raise ConfigError(
                f"trainer: {each.__name__} overrides {listed(changed)} of {known.__name__}, so which prompts a batch "
                f"holds is not known -> take {known.__name__}, or train without dynamic()"
            )
    require_rollouts(f"trl.{known.__name__}")


def reward_weights(trainer: Any) -> str:
    """Returns the names of a trainer's reward functions, each with its weight: ``correct x 1, short x 0.5``."""
    named = zip(trainer.reward_func_names, trainer.reward_weights.tolist(), strict=True)
    return ", ".join(f"{name} x {weight:.6g}" for name, weight in named)


def total_rewards(trainer: Any, rewards_GF: torch.Tensor) -> torch.Tensor:
    """Returns the reward of each answer as the trainer adds them up: (G,), NaN where no function gave one.

    Args:
        trainer: The trainer, with a weight for each reward function.
        rewards_GF: (G, F) what the reward functions gave, NaN for nothing.
    """
    total_G: torch.Tensor = (rewards_GF * trainer.reward_weights.to(rewards_GF.device)).nansum(dim=1)
    return total_G.masked_fill(torch.isnan(rewards_GF).all(dim=1), torch.nan)


def sampler_of(trainer: Any, rows: Any) -> Any:
    """Returns the trainer's own sampler over the prompts of a segment, in their order.

    Args:
        trainer: The trainer.
        rows: The rows of the segment.
    """
    shuffles, trainer.shuffle_dataset = trainer.shuffle_dataset, False
    try:
        return trainer._get_train_sampler(rows)
    finally:
        trainer.shuffle_dataset = shuffles


def rows_loaded(trainer: Any) -> int:
    """Returns the rows of a batch of a rank's loader: all of the generation's that are its own."""
    return int(trainer._train_batch_size * trainer.args.steps_per_generation)


def set_position(trainer: Any, micro_batches: int, left: Sequence[Mapping[str, Any]] | None) -> None:
    """Has the trainer go on after so many micro-batches, with what is left of a generation.

    Args:
        trainer: The trainer.
        micro_batches: How many its rank has trained on.
        left: What :func:`left_of_generation` returned; None where a generation begins.
    """
    trainer._step = micro_batches
    device = trainer.args.device
    trainer._buffered_inputs = None if left is None else [_on(device, each) for each in left]


def left_of_generation(trainer: Any) -> list[dict[str, Any]] | None:
    """Returns what this rank will still train on of the present generation, on the CPU; None where it is used up."""
    every = trainer.args.steps_per_generation * trainer.num_iterations
    if trainer._step % every == 0 or trainer._buffered_inputs is None:
        return None
    return [_on(torch.device("cpu"), each) for each in trainer._buffered_inputs]


def _is_entry(each: type) -> bool:
    return f"{each.__module__}.{each.__qualname__}" in ONLINE


def _on(device: torch.device, batch: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in batch.items()}
