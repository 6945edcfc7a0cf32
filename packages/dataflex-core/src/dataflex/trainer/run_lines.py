"""The log lines of a run: one when training begins, and one for each update, however many axes decide in it.

    rows by less; 60 steps of 8 rows, 5 updates, the first at step 10; 1,000 rows; output_dir: saves/less
    update 0 of 5 at step 10: less chose 80 of 1,000 rows in 1.2 s; next at step 20
    update 4 of 5 at step 50: less chose 80 of 1,000 rows in 1.2 s; the last one

Updates are numbered from 0, as everywhere. The line at the end is that of the command: :mod:`dataflex.run.whereabouts`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dataflex.config.summary import in_words
from dataflex.core.kinds import WEIGHTER
from dataflex.core.schedule import Segment, takes_part
from dataflex.planning.run_schedule import global_batch_size, rows_in_pass
from dataflex.planning.sources import origin_in_words
from dataflex.trainer.host import Host
from dataflex.utils.logging import logger


def say_start(trainer: Host) -> None:
    """Logs what will happen. Called when training begins, after the run's folder is opened."""
    logger.info("%s", start_in_words(trainer))


def start_in_words(trainer: Host) -> str:
    """Returns what a run is about to do: its components, steps, updates, rows and folder."""
    schedule, done = trainer.schedule, trainer.state.global_step
    steps = f"{trainer.state.max_steps:,} steps of {_rows_of_a_step(trainer)}"
    if done:
        steps = f"from step {done:,} on, {steps}"
    return "; ".join(
        [
            in_words(trainer.spec),
            f"{steps}{_updates(trainer, schedule.first_update())}",
            *_mixture(trainer),
            _rows(trainer.train_dataset),
            f"output_dir: {trainer.output_dir}",
        ]
    )


def _rows_of_a_step(trainer: Host) -> str:
    if trainer.rollouts is None:
        return f"{global_batch_size(trainer.args):,} rows"
    return f"{trainer.rollouts.step_rows.shown:,} prompts, {trainer.rollouts.generation.answers} answers to each"


def _updates(trainer: Host, first: Segment | None) -> str:
    if first is None or not _deciding(trainer):
        return ""
    updates = trainer.schedule.updates
    return (
        f", {updates:,} updates, the first at step {first.start}"
        if updates > 1
        else f", 1 update at step {first.start}"
    )


def _mixture(trainer: Host) -> list[str]:
    mixture = trainer.mixture_manager
    if mixture is None or trainer.state.global_step:  # a resumed run goes on with others
        return []
    return [f"shares begin with {origin_in_words(trainer.spec.arguments)}: {mixture.in_words()}"]


def _rows(dataset: Any) -> str:
    rows = rows_in_pass(dataset)
    return "rows of streams" if rows is None else f"{rows:,} rows"


def say_update(trainer: Host, segment: Segment, more: int, lines: Sequence[tuple[dict[str, Any], str]]) -> None:
    """Logs what was decided at an update.

    Args:
        trainer: The trainer.
        segment: The stretch that begins with the update.
        more: Updates that a continued run has beyond its schedule.
        lines: A line of the trace for each decision, and what is said of it; at least one.
    """
    seconds = sum(line["seconds"] for line, _ in lines)
    logger.info(
        "update %d of %d at step %d: %s in %.1f s; %s",
        lines[0][0]["update"], trainer.schedule.updates + more, segment.start,
        "; ".join(f"{line['component']} {news}" for line, news in lines), seconds, _what_is_next(trainer, segment),
    )  # fmt: skip


def _what_is_next(trainer: Host, segment: Segment) -> str:
    """Returns when the next update is in which any axis takes part."""
    schedule = trainer.schedule
    while segment.stop < schedule.total:
        segment = schedule.segment_at(segment.stop)
        if segment.update is not None and any(
            takes_part(segment.update, segment.start, part.every, part.start) for part in _deciding(trainer)
        ):
            return f"next at step {segment.start}"
    return "the last one"


def _deciding(trainer: Host) -> list[Any]:
    """Returns the axes that decide at updates."""
    return [part for part in trainer.spec.axes if part.component.kind is not WEIGHTER]
