"""What a component is asked before the first step, so that no update has to refuse what was known earlier."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from dataflex.core.agreement import from_rank_0, on_every_rank
from dataflex.core.component import Component
from dataflex.core.context import RunAhead
from dataflex.core.errors import blaming
from dataflex.scoring.session import undisturbed
from dataflex.trainer.engine import computes_before_training
from dataflex.utils.progress import Progress, without_bars

if TYPE_CHECKING:
    from dataflex.trainer.dynamic import DynamicTrainer


class EarlyChecks:
    """Has the trainer's component refuse what it could not do later. Each method is collective.

    Under an engine that shards the weights, most of it waits until training begins: before that no rank has a model
    that computes.

    Args:
        trainer: The trainer.

    Attributes:
        of_model: What the trainer itself asks of the model, before its component does.
    """

    def __init__(self, trainer: DynamicTrainer) -> None:
        self._trainer = trainer
        self.of_model: Callable[[], None] = lambda: None
        self._ahead: RunAhead | None = None  # None before the trainer has its schedule

    def made(self, most_rows: int) -> None:
        """Asks when the trainer is made.

        Args:
            most_rows: Most rows that an update asks for.

        Raises:
            DataflexError: On every rank.
        """
        trainer = self._trainer
        self._ahead = RunAhead(trainer.schedule.updates, trainer.schedule.total, most_rows)
        if isinstance(trainer.component, Component):
            self.state()
            if computes_before_training(trainer.accelerator.distributed_type):
                on_every_rank(trainer.accelerator, self._run)

    def begin(self) -> None:
        """Asks when training begins: there is an optimizer now.

        Raises:
            DataflexError: On every rank.
        """
        trainer = self._trainer
        if isinstance(trainer.component, Component):
            if not computes_before_training(trainer.accelerator.distributed_type):
                on_every_rank(trainer.accelerator, self._run)
            on_every_rank(trainer.accelerator, self._optimizer)

    def state(self) -> None:
        """Refuses a component whose state a checkpoint could not hold, where there are to be some."""
        if self._trainer.args.save_strategy != "no":
            from_rank_0(self._trainer.accelerator, lambda: bool(self._trainer.component_state()))

    def _run(self) -> None:
        trainer = self._trainer
        assert isinstance(trainer.model, torch.nn.Module)
        assert self._ahead is not None
        with undisturbed(trainer.model):
            self.of_model()
        with undisturbed(trainer.model), self._followed("a first try on two rows"):
            trainer.component.check_run(trainer.model, self._ahead)

    def _optimizer(self) -> None:
        trainer = self._trainer
        assert isinstance(trainer.model, torch.nn.Module)
        with undisturbed(trainer.model), self._followed("a look at the optimizer"):
            trainer.component.check_optimizer(trainer.model, trainer.optimizer)

    @contextmanager
    def _followed(self, what: str) -> Iterator[None]:
        """Names the component in errors, and in signs of life where it takes long."""
        trainer, who = self._trainer, self._trainer.component_in_words()
        name = who if trainer.spec.component is None else trainer.spec.component.name
        with blaming(who), without_bars(bool(trainer.args.disable_tqdm)), Progress(f"{name}: {what}", bar=None):
            yield
