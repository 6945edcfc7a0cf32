"""What a combination of axes is worth where the right answers are known, against each axis alone and random rows.

    python -m benchmarks.composition --seeds 5
    python -m benchmarks.composition --target copy --segment 8 --base-steps 3000
    python -m benchmarks.composition --quick

Ten families of tasks in three sources, three answers of ten wrong. What is wanted is a low loss over all families, or,
with ``--target``, on one family; a few right rows of them are the evaluation set. Every run starts from the same small
model, which has begun to learn all families from other rows, and goes through the real trainer with shares of the
sources by their sizes. Measured is the loss on held-out rows, at two points of the same run:

* at equal steps: after a warm-up and some updates;
* at equal time: when the run has taken the processor time that the combination takes for these steps, scoring included,
  and the measuring itself left out. A method that costs less trains on, with updates as before; one that costs more is
  measured earlier. The time is that of all threads of the process, of a GPU that on the clock.

The rows that are trained on, their order and what is drawn differ by seed; a method is compared with ``random`` of the
same seed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dataflex.config.arguments import DataflexArguments
from dataflex.config.spec import ComponentSpec, Part, RunSpec
from dataflex.core.kinds import MIXER, ORDER, SELECTOR, WEIGHTER
from dataflex.testing import pad_collate, tiny_training_args
from dataflex.trainer import DynamicTrainer, trainer_class
from dataflex.workspace.tasks import FAMILIES
from transformers import PrinterCallback, Qwen2ForCausalLM, Trainer, TrainerCallback

from benchmarks.common import add_device, add_threads, at_least, chosen, machine, quieten
from benchmarks.quality_data import Pool, base_model, pool, world
from benchmarks.selection_quality import spread, test_loss

BATCH = 8
"""Rows of a step."""

SOURCES = {
    "numbers": ("sum", "difference", "largest", "sort"),
    "letters": ("copy", "reverse", "uppercase", "count"),
    "language": ("opposite", "library"),
}
"""Source -> its families."""

EVERY = "all four"


@dataclass(frozen=True)
class Course:
    """How a run goes.

    Attributes:
        warmup: Steps before the first update.
        segment: Steps of an update.
        updates: Updates until losses are compared at equal steps.
        rate: The constant learning rate.
    """

    warmup: int = 20
    segment: int = 48
    updates: int = 3
    rate: float = 1e-3

    @property
    def steps(self) -> int:
        """Steps until losses are compared at equal steps."""
        return self.warmup + self.segment * self.updates


QUICK = Course(warmup=4, segment=4, updates=2)


def part(kind: Any, name: str, params: Mapping[str, Any] | None = None, **place: Any) -> Part:
    """Returns a component in its place."""
    return Part(ComponentSpec(kind, name, name, params or {}), **place)


MIX = part(MIXER, "static")
FILTER = part(SELECTOR, "loss", keep=0.5)
LESS = part(SELECTOR, "less")
SAW = part(ORDER, "saw", by="loss", over="stretch")
TRIM = part(WEIGHTER, "trim", {"share": 0.25})
"""Two of the eight samples of a step; of the share 0.1, the default, none would be left out."""

METHODS: dict[str, tuple[Part, ...]] = {
    "random": (),
    "filter by loss": (FILTER,),
    "less": (LESS,),
    "saw": (SAW,),
    "saw, by length": (replace(SAW, by="length"),),
    "trim": (TRIM,),
    "filter, less": (FILTER, LESS),
    "filter, saw, trim": (FILTER, SAW, TRIM),
    EVERY: (FILTER, LESS, SAW, TRIM),
}
"""What each method has beside the mixer, which is the same in all: shares by size. ``less`` chooses in each source."""


@dataclass(frozen=True)
class Outcome:
    """What one run did.

    Attributes:
        target: Share of the rows of the updates until the comparison at equal steps that are of a wanted family.
        clean: Share of them whose answer is right.
        distinct: Different rows among them, as a share.
        seconds: Time until then, without the measuring.
        loss: Mean loss on held-out rows over the wanted families, then.
        steps: Steps until the comparison at equal time.
        timed_loss: The mean loss then.
    """

    target: float
    clean: float
    distinct: float
    seconds: float
    loss: float
    steps: int
    timed_loss: float


class Measuring(TrainerCallback):
    """Measures the model after a number of steps and after a time, and ends the run when it has both.

    Args:
        held_out: The held-out rows of each wanted family.
        steps: The number of steps.
        limit: The time in seconds; None for that which the steps took.
        device: Where the model computes.
    """

    def __init__(self, held_out: Sequence[Any], steps: int, limit: float | None, device: str) -> None:
        self._held_out, self._steps, self._limit, self._device = held_out, steps, limit, device
        self._began, self._measuring = 0.0, 0.0
        self.seconds = 0.0
        self.at_steps: float | None = None
        self.at_time: tuple[int, float] | None = None

    def _now(self) -> float:
        if self._device == "cuda":
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    def begin(self) -> None:
        """Starts the clock."""
        self._began = self._now()

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **more: Any) -> None:
        """Measures where the time has run out while an update was planned."""
        self._look(state.global_step, control, model)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **more: Any) -> None:
        """Measures after the steps, or the time."""
        self._look(state.global_step, control, model)

    def _look(self, step: int, control: Any, model: Any) -> None:
        started = self._now()
        taken = started - self._began - self._measuring
        after_steps = self.at_steps is None and step >= self._steps
        if after_steps and self._limit is None:
            self._limit = taken
        after_time = self.at_time is None and self._limit is not None and taken >= self._limit
        if after_steps or after_time:
            loss = float(np.mean([test_loss(model, held_out) for held_out in self._held_out]))
            if after_steps:
                self.seconds, self.at_steps = taken, loss
            if after_time:
                self.at_time = step, loss
        control.should_training_stop |= self.at_steps is not None and self.at_time is not None
        self._measuring += self._now() - started


def by_source(rows: Pool) -> tuple[dict[str, list[Any]], np.ndarray]:
    """Returns source -> its rows, and (N,) which of the pool's rows each row of the sources, one after another, is."""
    numbers = {
        source: [number for number, family in enumerate(rows.families) if family in families]
        for source, families in SOURCES.items()
    }
    parts = {source: [rows.rows[number] for number in found] for source, found in numbers.items()}
    return parts, np.concatenate([np.array(found) for found in numbers.values()])


def run(
    parts: Sequence[Part], rows: Pool, base: Path, folder: Path, seed: int, course: Course, limit: float | None,
    device: str,
) -> Outcome:  # fmt: skip
    """Trains the base model with some axes and returns what came of it."""
    parts = [replace(each, start=course.warmup) if each.component.kind is WEIGHTER else each for each in parts]
    keys: dict[str, Any] = {each.component.kind.name: {"component": each.component.name} for each in (MIX, *parts)}
    selectors = tuple({"component": each.component.name} for each in parts if each.component.kind is SELECTOR)
    if selectors:
        keys["selector"] = selectors
    arguments = DataflexArguments(
        train_type="dynamic",
        **keys,
        mixture_sample_rule="stratified",
        warmup_step=course.warmup,
        update_step=course.segment,
        update_times=10_000,  # the callback ends the run
    )
    train_rows, places = by_source(rows)
    wanted = {family for family, is_wanted in zip(rows.families, rows.in_target, strict=True) if is_wanted}
    measuring = Measuring([rows.test[family] for family in sorted(wanted)], course.steps, limit, device)
    trainer = trainer_class(DynamicTrainer, Trainer)(
        model=Qwen2ForCausalLM.from_pretrained(base),
        args=tiny_training_args(
            folder,
            max_steps=-1,
            per_device_train_batch_size=BATCH,
            learning_rate=course.rate,
            lr_scheduler_type="constant",
            logging_steps=1000,
            seed=seed,
        ),
        train_dataset=train_rows,
        eval_dataset=rows.target,
        data_collator=pad_collate,
        dataflex=RunSpec(arguments, parts=(*parts, MIX)),
        callbacks=[measuring],
    )
    trainer.remove_callback(PrinterCallback)
    measuring.begin()
    trainer.train()
    assert measuring.at_steps is not None, f"fewer steps in {folder} than were asked for"
    assert measuring.at_time is not None, f"less time in {folder} than was asked for"
    steps = [course.warmup + number * course.segment for number in range(course.updates)]
    files = [folder / "dataflex_selections" / f"step_{step:08d}.npz" for step in steps]
    trained = places[np.concatenate([np.load(file)["indices"] for file in files])]
    return Outcome(
        target=float(rows.in_target[trained].mean()),
        clean=float(rows.clean[trained].mean()),
        distinct=len(np.unique(trained)) / len(trained),
        seconds=measuring.seconds,
        loss=measuring.at_steps,
        steps=measuring.at_time[0],
        timed_loss=measuring.at_time[1],
    )


def one_seed(
    names: Sequence[str], rows: Pool, base: Path, folder: Path, seed: int, course: Course, device: str
) -> dict[str, Outcome]:
    """Returns method -> outcome, all on the same rows; the combination goes first and sets the time."""
    found: dict[str, Outcome] = {}
    for number, name in enumerate([EVERY, *(name for name in names if name != EVERY)]):
        limit = found[EVERY].seconds if found else None
        found[name] = run(METHODS[name], rows, base, folder / str(number), seed, course, limit, device)
        print(f"seed {seed}  {name:<16} {found[name]}", file=sys.stderr, flush=True)
    return {name: found[name] for name in names}


def _differences(losses: Sequence[float], against: Sequence[float]) -> list[str]:
    """Returns mean and spread of the differences, and in how many seeds they are below 0."""
    found = [loss - other for loss, other in zip(losses, against, strict=True)]
    return [spread(found, 3, "+"), f"{sum(each < 0 for each in found)} of {len(found)}"]


def table(outcomes: Sequence[Mapping[str, Outcome]]) -> str:
    """Returns a Markdown table with a row for each method; losses are differences to ``random`` of the same seed."""
    lines = [
        "| method | wanted families | right rows | different rows | s until then | equal steps: loss - random's "
        "| seeds it is lower in | steps at equal time | equal time: loss - random's | seeds it is lower in |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    random = [seed["random"] for seed in outcomes]
    for name in outcomes[0]:
        found = [seed[name] for seed in outcomes]
        if name == "random":
            at_steps = [f"({spread([each.loss for each in found], 3)})", "-"]
            at_time = [f"({spread([each.timed_loss for each in found], 3)})", "-"]
        else:
            at_steps = _differences([each.loss for each in found], [each.loss for each in random])
            at_time = _differences([each.timed_loss for each in found], [each.timed_loss for each in random])
        cells = [
            name,
            spread([each.target for each in found]),
            spread([each.clean for each in found]),
            spread([each.distinct for each in found]),
            f"{np.mean([each.seconds for each in found]):.1f}",
            *at_steps,
            f"{np.mean([each.steps for each in found]):.0f}",
            *at_time,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=at_least(1), default=5)
    parser.add_argument("--first-seed", type=at_least(0), default=0)
    parser.add_argument("--target", choices=list(FAMILIES), help="the family that is wanted; default: all alike")
    needed = f"random and {EVERY} are always among them"
    parser.add_argument("--only", help=f"methods, separated by ';' ({'; '.join(METHODS)}); {needed}")
    parser.add_argument("--segment", type=at_least(1), default=Course.segment, help="steps of an update")
    parser.add_argument("--rate", type=float, default=Course.rate, help="learning rate")
    parser.add_argument("--quick", action="store_true", help="one seed, few steps and a base model that knows little")
    parser.add_argument("--base-steps", type=at_least(1), default=600, help="steps that the base model is trained for")
    parser.add_argument("--base", type=Path, help="folder to keep the base model in, or to take it from")
    add_threads(parser, default=1)
    add_device(parser)
    options = parser.parse_args()
    if not 0 < options.rate < 1:
        parser.error(f"argument --rate: found {options.rate}, allowed: a number above 0, below 1")
    names = list(dict.fromkeys(["random", *chosen(parser, options.only, METHODS), EVERY]))
    course = QUICK if options.quick else Course(segment=options.segment, rate=options.rate)
    seeds = range(options.first_seed, options.first_seed + (1 if options.quick else options.seeds))
    quieten(options.threads)

    shared = world()
    with tempfile.TemporaryDirectory() as temporary:
        base = options.base or Path(temporary, "base")
        if not (base / "config.json").exists():
            base_model(shared, base, 20 if options.quick else options.base_steps)
        outcomes = [
            one_seed(
                names,
                pool(shared, options.target, seed),
                base,
                Path(temporary, str(seed)),
                seed,
                course,
                options.device,
            )
            for seed in seeds
        ]
    rows = pool(shared, options.target, seeds[0])
    print(f"{machine(options.device)}; {len(seeds)} seeds, mean ± standard deviation")
    print(
        f"{len(rows.rows)} rows of {len(FAMILIES)} families in {len(SOURCES)} sources, {rows.clean.mean():.0%} right; "
        f"{course.warmup} steps, then {course.updates} updates of {course.segment * BATCH} rows each, "
        f"rate {course.rate:g}; {len(rows.target)} target rows\n"
    )
    print(table(outcomes))


if __name__ == "__main__":
    main()
