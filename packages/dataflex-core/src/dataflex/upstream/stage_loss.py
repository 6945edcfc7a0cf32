"""Which loss a trainer's rows have: found by its class, in one table.

A trainer for pairs or tagged answers computes a loss of its own, which the loss of a model's tokens says nothing of.
The table names the trainers whose loss is known row by row. A subclass of one of them may change what it likes but the
methods that the loss stands on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from packaging.version import Version

from dataflex.core.errors import ConfigError, listed
from dataflex.discovery.installed import version_of
from dataflex.upstream.llamafactory_losses import PairwiseRewards, PreferenceLoss, TaggedAnswers
from dataflex.upstream.stage_interface import StageLoss, Use
from dataflex.upstream.trl_losses import PinnedDPO, PinnedKTO, PinnedReward
from dataflex.upstream.trl_preference import FusedDPO, FusedKTO

__all__ = ["KNOWN", "Known", "StageLoss", "Use", "stage_loss", "stage_name"]


@dataclass(frozen=True)
class Known:
    """A trainer whose loss is known row by row.

    Attributes:
        trainer: Its class, as ``module.Class``.
        loss: The loss of its rows.
        least: The first release of TRL in which it is this loss.
        below: The first release in which it is no more; None for no such.
    """

    trainer: str
    loss: StageLoss
    least: str = "0.18"
    below: str | None = None

    def holds(self, release: Version) -> bool:
        """Returns whether it is this loss in a release of TRL."""
        return Version(self.least) <= release and (self.below is None or release < Version(self.below))


KNOWN: tuple[Known, ...] = (
    Known("llamafactory.train.rm.trainer.PairwiseTrainer", PairwiseRewards()),
    Known("llamafactory.train.dpo.trainer.CustomDPOTrainer", PreferenceLoss()),
    Known("llamafactory.train.kto.trainer.CustomKTOTrainer", TaggedAnswers()),
    Known("trl.trainer.dpo_trainer.DPOTrainer", PinnedDPO(), "0.24", "0.25"),
    Known("trl.trainer.reward_trainer.RewardTrainer", PinnedReward(), "0.24", "0.25"),
    Known("trl.trainer.kto_trainer.KTOTrainer", PinnedKTO(), "0.24", "0.25"),
    Known("trl.trainer.dpo_trainer.DPOTrainer", FusedDPO(), "1.16", "1.17"),
    Known("trl.trainer.reward_trainer.RewardTrainer", PinnedReward(), "1.16", "1.17"),
    Known("trl.trainer.kto_trainer.KTOTrainer", FusedKTO(), "1.16", "1.17"),
)
"""Asked from the trainer's class upwards, so that LLaMA-Factory's come before TRL's, which they derive from."""


def stage_loss(trainer: Any) -> StageLoss | None:
    """Returns the loss of a trainer's rows; None for a trainer that is not in the table, as one for texts.

    Args:
        trainer: The trainer, or its class.

    Raises:
        ConfigError: It derives from one in the table and overrides what the loss stands on, or the installed TRL has
            another one under that name.
    """
    classes = (trainer if isinstance(trainer, type) else type(trainer)).__mro__
    place, entries = _nearest(classes)
    if not entries:
        return None
    found = _of_release(entries)
    _require_unchanged(classes[:place], classes[place], found)
    return found


def stage_name(trainer: type) -> str | None:
    """Returns the stage of a trainer's class, ``dpo``, ``rm`` or ``kto``; None for a trainer of texts.

    Args:
        trainer: The class; one that overrides its loss has the stage of its base.
    """
    _, entries = _nearest(trainer.__mro__)
    return entries[0].loss.name if entries else None


def _nearest(classes: Sequence[type]) -> tuple[int, list[Known]]:
    """Returns the place of the first class that is in the table, and its entries; none where no class is."""
    for place, each in enumerate(classes):
        entries = [known for known in KNOWN if known.trainer == f"{each.__module__}.{each.__qualname__}"]
        if entries:
            return place, entries
    return len(classes), []


def _of_release(entries: Sequence[Known]) -> StageLoss:
    release = version_of("trl")
    found = None if release is None else next((k.loss for k in entries if k.holds(Version(release))), None)
    if found is None:
        seen = listed([f"{known.least} up to below {known.below or 'any'}" for known in entries])
        raise ConfigError(
            f"trl: {entries[0].trainer} of TRL {release or 'without a version'} is not known, so its rows have no loss "
            f"here; known: {seen} -> install such a release"
        )
    return found


def _require_unchanged(below: Sequence[type], known: type, loss: StageLoss) -> None:
    for each in below:
        changed = [name for name in loss.stands_on if name in vars(each)]
        if changed and not _is_ours(each):
            raise ConfigError(
                f"trainer: {each.__name__} overrides {listed(changed)} of {known.__name__}, so the loss of a row is "
                f"not known -> take {known.__name__}, or a component that does not look at losses"
            )


def _is_ours(each: type) -> bool:
    """Whether a class is dataflex's, which hands on what it overrides."""
    return each.__module__.partition(".")[0] == "dataflex"
