"""How fast the loss of every row changes when the trainable weights move in a random direction.

    a_p(z) = <grad l(z), xi_p>

Two ways to it:

* ``finite_difference``: (l(z; w + h xi) - l(z; w - h xi)) / 2h, two forward passes. Any model can do it. The weights
  are moved in place and put back bit for bit. h is a share of the RMS of the weights. Where the model computes in 16
  bits, a small step drowns in rounding: against the exact derivatives of small models (all weights; LoRA) in bf16, a
  share of 1e-3 gave correlations of 0.6 to 0.9, while 1e-2 and 3e-2 gave more than 0.98; in fp32, 1e-3 gave more than
  0.999. Hence the two defaults.
* ``jvp``: the exact derivative, see :mod:`dataflex_selectors.forward_mode`.

Directions come one after the other, each with a pass over the rows. Rejected: all of them for one batch after the
other, which takes P copies of the trainable weights, or moves them P times per batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch
from dataflex.scoring import RowPass, per_sample_losses, undisturbed, without_replicas
from numpy.typing import NDArray

from dataflex_selectors.directions import Directions, is_narrow, moved
from dataflex_selectors.forward_mode import exact_derivatives

METHODS = ("finite_difference", "jvp")
STEP_32_BITS = 1e-3
STEP_16_BITS = 2e-2

Along = Callable[[RowPass, int], NDArray[np.float64]]
"""``along(rows, direction) -> a_N``."""


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
    along = exact_derivatives(model, drawn) if method == "jvp" else _differences(model, drawn, step)
    for direction in range(directions):
        desc = f"{rows.desc}, direction {direction + 1} of {directions}"
        with undisturbed(model):
            found = along(replace(rows, desc=desc), direction)
        yield found


def default_step(model: torch.nn.Module, rows: RowPass) -> float:
    """Returns the share of the RMS that suits the precision in which the model computes."""
    return STEP_16_BITS if is_narrow(model, rows.accelerator) else STEP_32_BITS


def _differences(model: torch.nn.Module, drawn: Directions, step: float | None) -> Along:
    def losses(rows: RowPass) -> NDArray[np.float64]:
        found = per_sample_losses(
            model,
            rows.dataset,
            collator=rows.collator,
            accelerator=rows.accelerator,
            indices=rows.indices,
            token_budget=rows.token_budget,
            desc=rows.desc,
            progress=rows.progress,
        )
        return found.astype(np.float64)

    def along(rows: RowPass, direction: int) -> NDArray[np.float64]:
        share = default_step(model, rows) if step is None else step
        h = share * (drawn.rms() or 1.0)  # weights may all be 0, as those of some adapters when training begins
        with moved(drawn, direction, h):
            ahead_N = losses(rows)
        with moved(drawn, direction, -h):
            behind_N = losses(rows)
        return np.asarray((ahead_N - behind_N) / (2 * h))  # central: the error is O(h^2)

    return along
