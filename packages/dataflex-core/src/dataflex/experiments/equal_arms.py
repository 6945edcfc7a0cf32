"""Arms with other steps, so that they have as much compute as their reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from dataflex.core.errors import InvalidConfigError, Problem
from dataflex.experiments.arm_steps import lengths_in_words, with_total
from dataflex.experiments.equal_compute import flops, steps_for
from dataflex.experiments.experiment_arms import Arm, checked
from dataflex.experiments.experiment_file import Experiment


def with_equal_compute(experiment: Experiment, arms: Sequence[Arm]) -> list[Arm]:
    """Returns the arms with steps that pay for their updates; as they are unless compute is to be equal.

    Raises:
        ConfigError: What a run takes is not known, or the updates of an arm are more than all that it has.
    """
    if experiment.equal != "compute":
        return list(arms)
    budget = {arm.name: flops(arm.spec, experiment.jobs) for arm in arms if arm.against is None}
    main = next(iter(budget.values()))
    found = []
    for arm in arms:
        if arm.against is None and budget[arm.name] == main:
            found.append(arm)
            continue
        if arm.steps is None:
            what = "its steps are passes over the rows; equal: compute changes them"
            raise InvalidConfigError(
                [Problem(arm.name, what, "set train_step (of a static run max_steps) in the base")]
            )
        steps = steps_for(main, arm.steps, partial(_cost, arm, arm.steps, experiment), arm.name)
        found.append(arm if steps == arm.steps else longer(arm, arm.steps, steps, experiment))
    return found


def _cost(arm: Arm, before: int, experiment: Experiment, steps: int) -> float:
    return flops(longer(arm, before, steps, experiment).spec, experiment.jobs)


def longer(arm: Arm, before: int, steps: int, experiment: Experiment) -> Arm:
    """Returns an arm with other steps."""
    config = with_total(arm.config, arm.spec, before, steps, arm.name)
    made = checked(f"arms.{arm.name}", config, experiment)
    length = f"{before} -> {steps} steps: {lengths_in_words(config)}"
    return replace(arm, config=config, spec=made.spec, length=length)
