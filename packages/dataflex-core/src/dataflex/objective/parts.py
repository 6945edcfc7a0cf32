"""What a run has that weighs its loss or looks at losses, each with its name in messages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from dataflex.interfaces.mixer import Mixer
from dataflex.interfaces.weighter import WeightsSamples
from dataflex.upstream.stage_interface import StageLoss

Seen = Callable[[torch.Tensor, torch.Tensor, int], None]
"""``seen(rows_B, losses_B, step)``: told the numbers of the rows of a micro-batch (int64), their mean token losses
before the step (float32, NaN for a row without a label to predict), both on the device, and the global optimizer steps
done. On each rank for its own micro-batches. A row may come twice; a packed row does so with the same loss."""


OBJECTIVE = "key objective_proportions"
"""Who weighs the sources against their shares in the rows, behind "the"."""


@dataclass(frozen=True)
class WeighterPart:
    """The weighter of a run.

    Attributes:
        weighter: It.
        name: Its name, for messages and the record.
        preset: The preset that it was made from.
        start: The first global step that it weighs.
    """

    weighter: WeightsSamples
    name: str
    preset: str
    start: int = 0

    def at(self, step: int) -> str:
        """Returns who it is at a step, for messages."""
        return f"weighter '{self.name}' at step {step}"


@dataclass(frozen=True)
class MixerPart:
    """The mixer of a run, which looks at losses.

    Attributes:
        mixer: It.
        name: Its name, for messages.
        preset: The preset that it was made from.
        sources: K, the number of its sources.
        weighs: Whether it weighs the loss of each source, too.
        gradients: Whether it looks at the gradients of the sources, too.
        logits: Whether it looks at the logits of training, too.
    """

    mixer: Mixer
    name: str
    preset: str
    sources: int
    weighs: bool = False
    gradients: bool = False
    logits: bool = False

    def at(self, step: int) -> str:
        """Returns who it is at a step, for messages."""
        return f"mixer '{self.name}' at step {step}"


@dataclass(frozen=True)
class Parts:
    """The parts of an objective; a run without any has none.

    Attributes:
        weighter: Weighs samples.
        mixer: Looks at the losses of sources, and may weigh them.
        rows: Who gives rows weights, in words (``selector 'prune'``); None where nobody does.
        objective: Returns (K,) what a row of each source counts, so that the sources have other shares in the loss than
            in the rows; None where they have not.
        seen: Told the losses of the rows that were just trained on; None where nobody keeps them.
    """

    weighter: WeighterPart | None = None
    mixer: MixerPart | None = None
    rows: str | None = None
    objective: Callable[[], NDArray[np.float64]] | None = None
    seen: Seen | None = None

    @property
    def there(self) -> bool:
        """Whether there is a part at all."""
        return any(part is not None for part in (self.weighter, self.mixer, self.rows, self.objective, self.seen))

    @property
    def in_words(self) -> str:
        """The first part, for messages."""
        if self.weighter is not None:
            return "a weighter"
        if self.mixer is not None:
            return f"the mixer '{self.mixer.name}'"
        if self.objective is not None:
            return f"the {OBJECTIVE}"
        return f"the {self.rows}" if self.rows is not None else "the run"

    @property
    def weighs(self) -> bool:
        """Whether the loss is replaced."""
        return self.who_weighs is not None

    @property
    def who_weighs(self) -> str | None:
        """The first of those that weigh the loss, in words; None where nobody does."""
        if self.weighter is not None:
            return f"weighter '{self.weighter.preset}'"
        if self.mixer is not None and self.mixer.weighs:
            return f"mixer '{self.mixer.preset}'"
        return OBJECTIVE if self.objective is not None else self.rows

    @property
    def unweighted(self) -> str:
        """Who weighs without a weighter, by name, and what: for messages."""
        if self.mixer is not None and self.mixer.weighs:
            return f"mixer '{self.mixer.name}' weighs the loss of each source"
        if self.objective is not None:
            return f"{OBJECTIVE} weighs the loss of each source"
        return f"{self.rows} gives rows weights"

    @property
    def without_logits(self) -> str | None:
        """Who could not work without the logits of training, and why, in words; None where nobody needs them."""
        if self.mixer is None or not (self.mixer.gradients or self.mixer.logits):
            return None
        what = "takes gradients of the output layer" if self.mixer.gradients else "looks at them"
        return f"mixer '{self.mixer.preset}' {what}"

    @property
    def measures(self) -> bool:
        """Whether the losses of tokens are looked at."""
        return self.mixer is not None or self.seen is not None

    @property
    def who_measures(self) -> str:
        """What is done with them, in words."""
        if self.mixer is not None:
            return "the mixer follows the loss of each source"
        return "the losses of the rows that were trained on are kept"


@dataclass(frozen=True)
class Keys:
    """What the configuration of a run says of its loss.

    Attributes:
        by_tokens: Whether a weighted step is a mean over tokens: ``weight_objective``.
        logits: ``weight_logits``.
        dft: Whether the trainer's ``compute_loss_func``, where it has one, is the DFT loss.
        liger: Whether a fused loss was asked for.
        bases: The classes of the trainer underneath.
        stage: The loss of rows that are no texts; None where they are.
    """

    by_tokens: bool = False
    logits: str = "auto"
    dft: bool = False
    liger: bool = False
    bases: Sequence[type] = ()
    stage: StageLoss | None = None
