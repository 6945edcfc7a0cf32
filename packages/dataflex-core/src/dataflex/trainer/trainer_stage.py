"""The stage that a trainer trains at, where its rows have a loss of their own: pairs of answers, tagged answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from dataflex.core.errors import ConfigError, listed
from dataflex.scoring.stage_rows import StageCollator
from dataflex.upstream.stage_loss import StageLoss, Use, stage_loss, stage_name
from dataflex.utils.logging import logger


class TrainerStage:
    """What is known of the loss of a trainer's rows.

    A loss that is not known is refused when it is asked for: a run that looks at no loss goes on without.

    Args:
        trainer: The trainer, when the one underneath has been made.

    Attributes:
        loss: The loss; None for a trainer of texts, and where it is not known.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self.loss: StageLoss | None = None
        self._problem: ConfigError | None = None
        try:
            self.loss = stage_loss(trainer)
        except ConfigError as error:
            self._problem = error
        self._told = False

    @property
    def is_own(self) -> bool:
        """Whether rows are no texts."""
        return self.loss is not None or self._problem is not None

    def collator(self, collate: Any) -> Any:
        """Returns a collator with the loss of its rows; the collator itself where rows are texts."""
        if not self.is_own:
            return collate
        name = stage_name(type(self._trainer))
        assert name is not None, "rows have a loss of their own by the table that names the stages"
        return StageCollator(collate, name, self.rows_in, self._alone)

    def rows_in(self, inputs: Mapping[str, Any]) -> int:
        """Returns the rows of a batch.

        Raises:
            ConfigError: The loss of the trainer's rows is not known, or it does not take such a batch.
        """
        loss = self._known()
        try:
            return loss.rows_in(inputs)
        except KeyError as missing:
            raise ConfigError(
                f"data_collator: it made a batch of {listed(sorted(inputs))}, and the loss of stage {loss.name} is "
                f"computed of {missing} -> use the collator of the stage's trainer"
            ) from missing

    def require(self, use: Use, who: str) -> StageLoss:
        """Returns the loss, for who looks at it.

        Args:
            use: What it is wanted for.
            who: Who wants it, in words.

        Raises:
            ConfigError: The rows have none with the trainer's settings.
        """
        loss = self._known()
        reason = loss.refused(self._trainer, use)
        if reason is not None:
            way_out = "" if " -> " in reason else " -> use another one, or a component that does not look at losses"
            raise ConfigError(f"{who} needs the loss of each row, and {reason}{way_out}")
        remark = loss.remark(self._trainer)
        if remark is not None and not self._told:
            logger.warning("%s", remark)
        self._told = True
        return loss

    def _alone(self, model: torch.nn.Module, inputs: Mapping[str, Any]) -> torch.Tensor:
        return self.require(Use.SCORE, "a component that scores rows").alone(self._trainer, model, inputs)

    def _known(self) -> StageLoss:
        if self._problem is not None:
            raise self._problem
        assert self.loss is not None, "asked for where rows have a loss of their own"
        return self.loss
