"""What a component is asked before the first step, so that no update has to refuse what was known earlier."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from dataflex.config.spec import Part
from dataflex.core.component import Component
from dataflex.core.context import RunAhead
from dataflex.core.errors import blaming
from dataflex.core.ranks.agreement import from_rank_0, on_every_rank
from dataflex.model.undisturbed import undisturbed
from dataflex.trainer.engine import computes_before_training
from dataflex.trainer.host import Host
from dataflex.utils.progress import Progress, without_bars


class EarlyChecks:
    """Has the trainer's component refuse what it could not do later. Each method is collective.

    Under an engine that shards the weights, most of it waits until training begins: before that no rank has a model
    that computes.

    Args:
        trainer: The trainer.

    Attributes:
        of_model: What the trainer itself asks of the model, before its component does.
    """

    def __init__(self, trainer: Host) -> None:
        self._trainer = trainer
        self.of_model: Callable[[], None] = lambda: None
        self._most_rows = 0  # that an update asks for

    def made(self, most_rows: int) -> None:
        """Asks when the trainer is made.

        Args:
            most_rows: Most rows that an update asks for.

        Raises:
            DataflexError: On every rank.
        """
        trainer = self._trainer
        self._most_rows = most_rows
        if self._components():
            self.state()
            if computes_before_training(trainer.accelerator.distributed_type):
                on_every_rank(trainer.accelerator, self._run)

    def begin(self) -> None:
        """Asks when training begins: there is an optimizer now.

        Raises:
            DataflexError: On every rank.
        """
        trainer = self._trainer
        if self._components():
            if not computes_before_training(trainer.accelerator.distributed_type):
                on_every_rank(trainer.accelerator, self._run)
            on_every_rank(trainer.accelerator, self._optimizer)

    def state(self) -> None:
        """Refuses a component whose state a checkpoint could not hold, where there are to be some."""
        if self._trainer.args.save_strategy != "no":
            from_rank_0(self._trainer.accelerator, lambda: bool(self._trainer.components.state_dict()))

    def _components(self) -> list[tuple[Part, Component, int]]:
        """Returns each component of ours with its part of the run, and the most rows that it is asked for at once."""
        found = self._trainer.components.asked(self._most_rows)
        return [(part, each, rows) for part, each, rows in found if isinstance(each, Component)]

    def _run(self) -> None:
        trainer = self._trainer
        with undisturbed(trainer.model):
            self.of_model()
        for part, component, rows in self._components():
            shared_out = part.keep is None and rows > 0 and trainer.mixture_manager is not None
            schedule = trainer.schedule
            ahead = RunAhead(schedule.updates, schedule.total, rows, trainer.rows_of_a_step, shared_out)
            with undisturbed(trainer.model), self._followed(part, "a first try on two rows"):
                component.check_run(trainer.model, ahead)

    def _optimizer(self) -> None:
        trainer = self._trainer
        for part, component, _ in self._components():
            with undisturbed(trainer.model), self._followed(part, "a look at the optimizer"):
                component.check_optimizer(trainer.model, trainer.optimizer)

    @contextmanager
    def _followed(self, part: Part, what: str) -> Iterator[None]:
        """Names the component in errors, and in signs of life where it takes long."""
        bars = without_bars(bool(self._trainer.args.disable_tqdm))
        with blaming(part.component.in_words), bars, Progress(f"{part.component.name}: {what}", bar=None):
            yield
