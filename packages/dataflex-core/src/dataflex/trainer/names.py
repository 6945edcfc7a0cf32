"""The trainers of runs with one axis: the one trainer, with an eye on what it is given."""

from __future__ import annotations

from dataflex.core.kinds import MIXER, ORDER, SELECTOR, WEIGHTER
from dataflex.trainer.dynamic import DynamicTrainer


class SelectTrainer(DynamicTrainer):
    """Asks the selector for ``warmup`` rows first and for the rows of each update after that."""

    kind = SELECTOR


class MixTrainer(DynamicTrainer):
    """Plans each segment from the proportions of the moment.

    The train dataset is a mapping ``name -> dataset`` (or a :class:`~dataflex.rows.views.MixedSources`). The datasets
    may be streams (``datasets.IterableDataset``), which are then read in their own order.
    """

    kind = MIXER


class ReorderTrainer(DynamicTrainer):
    """Trains on the rows in the order in which they are arranged."""

    kind = ORDER


class WeightTrainer(DynamicTrainer):
    """Lets the weighter scale the loss of each sample once ``warmup_step`` steps are done.

    Rows come in the order of a static run. A sample is a row, or a document of a packed row. The objective of a step is
    stated in docs/weighters.md and does not depend on how the step's samples are split into micro-batches and over
    ranks.
    """

    kind = WEIGHTER
