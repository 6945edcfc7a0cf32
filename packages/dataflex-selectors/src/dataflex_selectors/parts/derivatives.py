"""How fast the loss of every row changes when the trainable weights move in a random direction.

    a_p(z) = <grad l(z), xi_p>

Two methods:

* ``finite_difference``: (l(z; w + h xi) - l(z; w - h xi)) / 2h, two forward passes. Any model can do it. The weights
  are moved in place and put back bit for bit. h is a share of the RMS of the weights. Where the model computes in 16
  bits, a small step drowns in rounding: against the exact derivatives of small models (all weights; LoRA) in bf16, a
  share of 1e-3 gave correlations of 0.6 to 0.9, while 1e-2 and 3e-2 gave more than 0.98; in fp32, 1e-3 gave more than
  0.999. Hence the two defaults.
  Where the step is so small that losses move by no more than rounding moves them, the order of the rows is noise, and
  a warning says so: below 4 units in the last place of a loss in fp32 the correlations fell under 0.99, and in bf16
  below 2^-14 of a loss under 0.9.
* ``jvp``: the exact derivative, see :mod:`dataflex_selectors.parts.forward_mode`.

Directions come one after the other, each with a pass over the rows. Rejected: all of them for one batch after the
other, which takes P copies of the trainable weights, or moves them P times per batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from dataflex.scoring import RowPass, per_sample_losses, undisturbed, without_replicas
from dataflex.utils.logging import logger
from dataflex.utils.progress import Progress
from numpy.typing import NDArray

from dataflex_selectors.parts.forward_mode import exact_derivatives
from dataflex_selectors.parts.weight_directions import Directions, is_narrow, moved

if TYPE_CHECKING:
    from accelerate import Accelerator

METHODS = ("finite_difference", "jvp")
STEP_32_BITS = 1e-3
STEP_16_BITS = 2e-2


def directional_derivatives(
    model: torch.nn.Module, rows: RowPass, *, method: str, directions: int, seed: int, step: float | None = None
) -> Iterator[NDArray[np.float64]]:
    """Yields a_p of every row, for each direction p in turn: (N,) float64, NaN for a row without labels.

    Collective: every rank iterates to the end, and each gets the values of all rows. Between two directions the weights
    are what they were.

    Args:
        model: A causal language model with whole weights on every rank.
        rows: The rows.
        method: One of :data:`METHODS`.
        directions: Number of directions, P.
        seed: What the directions depend on, the same on every rank.
        step: Length of a finite difference as a share of the RMS of the trainable weights; None takes the default for
            the precision in which the model computes.

    Raises:
        ComponentError: Losses or derivatives that are not finite, or a model that ``jvp`` cannot differentiate.
    """
    model = without_replicas(model)
    drawn = Directions.of(model, seed)
    differences = None if method == "jvp" else _Differences(model, drawn, step)
    along = differences or exact_derivatives(model, drawn)
    with Progress(rows.desc, directions, "directions", shown=rows.progress, bar=None) as progress:
        for direction in range(directions):
            desc = f"{rows.desc}, direction {direction + 1} of {directions}"
            with undisturbed(model):
                found = along(replace(rows, desc=desc), direction)
            yield found
            progress.done()
    if differences is not None:
        differences.warn_of_rounding(rows)


def default_step(model: torch.nn.Module, rows: RowPass) -> float:
    """Returns the share of the RMS that suits the precision in which the model computes."""
    return STEP_16_BITS if is_narrow(model, rows.accelerator) else STEP_32_BITS


def rounding_share(model: torch.nn.Module, accelerator: Accelerator | None) -> float:
    """Returns the share of a loss below which a difference of two may be rounding, in the model's precision."""
    unit = 2.0**-23  # of a loss, which is a number of 32 bits
    if is_narrow(model, accelerator):
        # Activations are rounded more coarsely, and the loss is a mean over many of them: see above.
        types = {p.dtype for p in model.parameters() if p.is_floating_point() and p.element_size() == 2}
        half = (accelerator is not None and accelerator.mixed_precision == "fp16") or types == {torch.float16}
        return torch.finfo(torch.float16 if half else torch.bfloat16).eps / 128
    return 4 * unit


class _Differences:
    """``along(rows, direction)`` by finite differences, and a record of how large they were, compared with rounding.

    Args:
        model: A causal language model with whole weights.
        drawn: Its directions.
        step: Length as a share of the RMS of the trainable weights; None for the default.
    """

    def __init__(self, model: torch.nn.Module, drawn: Directions, step: float | None) -> None:
        self._model, self._drawn, self._step = model, drawn, step
        self._moved: list[float] = []  # median difference of the losses, by direction
        self._losses: list[float] = []  # how large they were

    def __call__(self, rows: RowPass, direction: int) -> NDArray[np.float64]:
        h = self._share(rows) * (self._drawn.rms() or 1.0)  # weights may all be 0, as those of some adapters at first
        with moved(self._drawn, direction, h):
            ahead_N = self._of(rows)
        with moved(self._drawn, direction, -h):
            behind_N = self._of(rows)
        labelled_N = ~np.isnan(ahead_N)
        if labelled_N.any():
            self._moved.append(float(np.median(np.abs(ahead_N - behind_N)[labelled_N])))
            self._losses.append(float(np.median(ahead_N[labelled_N])))
        return np.asarray((ahead_N - behind_N) / (2 * h))  # central: the error is O(h^2)

    def warn_of_rounding(self, rows: RowPass) -> None:
        """Warns where the losses moved by no more than rounding moves them."""
        if not self._moved:
            return
        change, loss = float(np.median(self._moved)), float(np.median(self._losses))
        least = rounding_share(self._model, rows.accelerator) * max(1.0, loss)  # a small loss comes from larger logits
        if change < least:
            logger.warning(
                "%s: a step of %g of the weights moves losses of %.3g by %.2g (the median), and rounding moves them by "
                "up to %.2g: the order of the rows is mostly noise -> use a larger step (the default here is %g), or "
                "method: jvp",
                rows.desc, self._share(rows), loss, change, least, default_step(self._model, rows),
            )  # fmt: skip

    def _share(self, rows: RowPass) -> float:
        return default_step(self._model, rows) if self._step is None else self._step

    def _of(self, rows: RowPass) -> NDArray[np.float64]:
        """Returns the losses with the weights as they are: (N,), NaN without labels."""
        found = per_sample_losses(
            self._model,
            rows.dataset,
            collator=rows.collator,
            accelerator=rows.accelerator,
            indices=rows.indices,
            token_budget=rows.token_budget,
            desc=rows.desc,
            progress=rows.progress,
        )
        return found.astype(np.float64)
