"""Gradients of the sources, as a mixer receives them: sums over the rows of an optimizer step, sketched.

A row's gradient is that of its loss by the trained weights. Where a weighter weighs tokens, it is that of the losses of
its tokens times their weights, these relative to the mean weight of the step; all other weights are taken out. Inner
products of gradients of rows are kept in expectation by the sketch (exactly, without one), so norms, angles and
variances of gradients follow from K vectors.

Letters: K sources, D numbers of a sketch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dataflex.core.errors import Problem
from dataflex.core.parameter_checks import count, count_or_null, one_of

if TYPE_CHECKING:
    import torch

TOKEN, ROW = "token", "row"
LAYERS = ("linear", "all")


@dataclass(frozen=True)
class GradientSketch:
    """Which gradients are measured, and what is kept of them.

    Attributes:
        proj_dim: D, numbers of a sketch of all layers together; None keeps every number that ``factor_dim`` leaves.
        factor_dim: Dimensions that are kept of each side of a matrix with more than this squared numbers; None for all.
            With both None gradients are exact, at 4 bytes for each row of a micro-batch and each trained number.
        layers: ``linear``: the weights of linear layers, those of LoRA among them; what cannot be told apart by row is
            left out, and a log line says how much that is. ``all``: every trained parameter; a model with one that
            cannot be told apart is refused.
        unit: ``token``: a row's gradient is that of the sum of its token losses, and a source's mean is taken over its
            tokens. ``row``: that of the mean of its token losses, and the mean is taken over its rows.
    """

    proj_dim: int | None = 4096
    factor_dim: int | None = 16
    layers: str = "linear"
    unit: str = TOKEN


def sketch_problems(proj_dim: Any, factor_dim: Any, layers: Any, gradient_every: Any) -> tuple[Problem | None, ...]:
    """Returns what is wrong with the parameters that mixers share which look at gradients.

    Args:
        proj_dim: See :class:`GradientSketch`, here and below.
        factor_dim: The same.
        layers: The same.
        gradient_every: Steps from one that is measured to the next.
    """
    return (
        count_or_null("proj_dim", proj_dim, "every number that factor_dim leaves"),
        count_or_null("factor_dim", factor_dim, "whole matrices"),
        one_of("layers", layers, LAYERS),
        count("gradient_every", gradient_every),
    )


@dataclass(frozen=True)
class SourceGradients:
    """The gradients of the sources in one optimizer step, over all its micro-batches and ranks; the same on each rank.

    Rows whose weight in the loss is 0 have no gradient that could be measured, and do not count; one whose tokens all
    weigh 0 counts, with a gradient of 0.

    Attributes:
        learning_rate: The rate that the step was made with, of the first group of parameters.
        sums: (K, D) float64 sums of the gradients of the rows of each source.
        squares: (K,) float64 sums of their squared norms.
        counts: (K,) float64 what :attr:`means` divides by: tokens or rows, by the sketch's ``unit``.
        rows: (K,) int64 rows of each source.
        left_out: How many rows had a gradient that is not finite, and do not count.
    """

    learning_rate: float
    sums: NDArray[np.float64]
    squares: NDArray[np.float64]
    counts: NDArray[np.float64]
    rows: NDArray[np.int64]
    left_out: int = 0

    @property
    def means(self) -> NDArray[np.float64]:
        """(K, D) gradient of each source's mean loss; NaN for a source without rows."""
        means_KD = np.full_like(self.sums, np.nan)
        seen_K = self.counts > 0
        means_KD[seen_K] = self.sums[seen_K] / self.counts[seen_K, None]
        return means_KD


class SketchesRows(Protocol):
    """Sketches the gradients of rows that are not trained on, as those of training are sketched."""

    def mean_of(
        self, model: torch.nn.Module, dataset: Any, collator: Callable[[list[Any]], Any], desc: str
    ) -> NDArray[np.float64]:
        """Returns the mean gradient of rows under the present weights: (D,) float64, the same on every rank.

        One forward and one backward pass over the rows, with the model in eval mode; nothing of the run is disturbed.
        Collective.

        Args:
            model: The model being trained.
            dataset: Tokenised rows with labels.
            collator: Makes a batch of tensors from a list of rows.
            desc: What a progress bar or a log line begins with.

        Raises:
            ComponentError: No row has a label, or a gradient is not finite.
        """
