"""Rows by how far their loss has fallen: first those whose loss fell most, later those whose loss fell less.

Losses of all rows now and at a reference point -> their differences, largest first -> a window that slides -> a
weighted draw.

    D_i = l_i(reference) - l_i(now)                     sorted descending; N rows have both losses
    x = u / (U - 1),  a(x) = 1 / (1 + e^(-10 (x - 1/2)))                     update u of U
    window = [a(x) (1 - w) N, a(x) (1 - w) N + w N), cut off at the first negative D
    p_i proportional to 1 inside of the window, v outside

Origin: the delta-loss selector of OpenDCAI/DataFlex. Here the reference is part of the checkpoint. Where the cut-off
leaves no row in the window, the window moves back, to end before the first negative D. Where every D is negative, all
rows are equally likely. A single update has x = 0. At the first update there is no reference yet, and rows are drawn at
random. Losses before the warm-up are not known, because a selector sees the model at updates only: with
``warmup_step: 0`` the reference is the model that the run began with.

With ``scores: seen`` no pass is made: l_i(now) is the loss that training saw last of the row, and l_i(reference) the
first one that an update found (``warmup``) or the one before (``previous``). A row with fewer than two of them has no
D; it weighs as much as one inside of the window, so that it is reached. See :mod:`dataflex_selectors.parts.row_losses`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from dataflex.core.context import UpdateContext
from dataflex.core.cost import Ahead, Cost
from dataflex.core.parameter_checks import between, one_of, require, share
from dataflex.core.registry import register_selector
from dataflex.train.selector.base_selector import Selection
from numpy.typing import NDArray

from dataflex_selectors.parts.drawing import draw, logarithms
from dataflex_selectors.parts.enough import HAVE_LABELS, SHOW_LABELS, require_enough
from dataflex_selectors.parts.finite_scores import scored_places
from dataflex_selectors.parts.ranking import places_between
from dataflex_selectors.parts.row_losses import ByLosses

if TYPE_CHECKING:
    import torch

REFERENCES = ("warmup", "previous")
_STEEPNESS = 10.0  # of the sigmoid: 0.7 % of the way at the first update, 99.3 % at the last


def window(learnt: int, size: int, width: float, progress: float) -> tuple[int, int]:
    """Returns where the window begins and ends among the rows sorted by D: 0 <= first < last <= ``size``.

    Args:
        learnt: Rows with D >= 0; they come first.
        size: Rows in all, N >= 1.
        width: Share of the rows that the window holds, w.
        progress: x, from 0 at the first update to 1 at the last.
    """
    if learnt == 0:
        return 0, size
    wide = min(size, max(1, round(width * size)))
    first = int((size - wide) / (1 + np.exp(-_STEEPNESS * (progress - 0.5))))
    last = min(first + wide, learnt)
    return (first, last) if first < last else (max(0, learnt - wide), learnt)


def window_weights(
    deltas_N: NDArray[np.floating[Any]], width: float, outside: float, progress: float
) -> NDArray[np.float64]:
    """Returns the weight of each row: (N,), 1 inside of the window, ``outside`` outside of it, 0 where D is no number.

    Args:
        deltas_N: (N,) D of each row.
        width: Share of the rows that the window holds, w.
        outside: Weight of a row outside of the window, v.
        progress: x, see :func:`window`.
    """
    usable = scored_places(deltas_N)
    weight_N = np.zeros(len(deltas_N))
    if len(usable):
        first, last = window(int((deltas_N[usable] >= 0).sum()), len(usable), width, progress)
        weight_N[usable] = outside
        weight_N[usable[places_between(first, last, -deltas_N[usable])]] = 1.0
    return weight_N


@register_selector("delta_loss")
class DeltaLossSelector(ByLosses):
    """Draws rows by how much their loss has fallen: at first those that fell most, later those that fell less.

    Args:
        reference: What losses are compared with: warmup for those at the first update, previous for the update before.
        window: Share of the rows that the window holds.
        outside_weight: Chance of a row outside of the window compared with one inside; 0 for none.
        **run: Where losses come from, and what every selector is given: see :class:`ByLosses`. ``cache_dir`` is not
            used: losses of another model state are never reused.

    Raises:
        ConfigError: A parameter is out of its range; the message holds all that are.
    """

    def __init__(
        self,
        *,
        reference: str = "warmup",
        window: float = 0.2,
        outside_weight: float = 0.025,
        **run: Any,
    ) -> None:
        super().__init__(**run)
        require(
            "delta_loss selector",
            *self.problems,
            one_of("reference", reference, REFERENCES),
            share("window", window),
            between("outside_weight", outside_weight, 0, 1),
        )
        self.reference = reference
        self.window = float(window)
        self.outside_weight = float(outside_weight)
        self._before: NDArray[np.float32] | None = None  # the losses to compare with
        self._last: NDArray[np.float32] | None = None  # of seen losses, those of the last update

    @classmethod
    def cost(cls, params: Mapping[str, Any], ahead: Ahead) -> Cost:
        """As every selector by losses, and the losses that it compares with. See the base class."""
        kept = (2 if params["scores"] == "seen" else 1) * 4 * ahead.rows.rows
        return replace(super().cost(params, ahead), state_bytes=kept)

    def select(self, model: torch.nn.Module, step_id: int, num_samples: int, **kwargs: Any) -> Selection:
        """Scores all rows and draws ``num_samples`` of them; the scores are the differences D.

        At the first update they are 0; of seen losses, NaN where a row has fewer than two. See the base class.

        Raises:
            ComponentError: Fewer rows can be drawn than were asked for.
        """
        context: UpdateContext = kwargs["context"]
        losses_N = self._losses.now(model, step_id, context.scores)
        deltas_N, unseen_N = self._falls_of_seen(losses_N) if self._losses.are_seen else self._falls(losses_N)
        outside = 1.0 if unseen_N is None else self.outside_weight
        progress = context.update / max(1, context.updates - 1)
        weight_N = window_weights(deltas_N, self.window, outside, progress)
        usable = len(scored_places(deltas_N))
        if unseen_N is not None:
            weight_N[unseen_N] = 1.0
            usable += int(unseen_N.sum())
        self._require_enough(num_samples, int(np.count_nonzero(weight_N)), usable)
        rows = draw(logarithms(weight_N), num_samples, self.replacement, self.generator(context.update))
        return Selection(rows, deltas_N[rows], candidates=deltas_N)

    def _falls(self, losses_N: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.bool_] | None]:
        """Returns D and which rows have none yet: (N,) each. At the first update D is 0, and the latter None."""
        first_time = self._before is None
        deltas_N = (losses_N if self._before is None else self._before) - losses_N
        self._before = self._reference(losses_N)
        return deltas_N, None if first_time else np.zeros(len(losses_N), dtype=np.bool_)

    def _falls_of_seen(self, losses_N: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Returns D, NaN for rows with fewer than two seen losses, and which rows of those have labels: (N,) each."""
        before_N = losses_N if self._before is None else self._before
        last_N = losses_N if self._last is None else self._last
        again_N = ~np.isnan(losses_N) & (losses_N != last_N)  # seen since the last update, or for the first time
        if self.reference == "previous":
            before_N = np.where(again_N, last_N, before_N)
        self._before = np.where(np.isnan(before_N), losses_N, before_N)
        self._last = np.where(again_N, losses_N, last_N)
        deltas_N = np.where(self._before == self._last, np.nan, self._before - self._last).astype(np.float32)
        return deltas_N, self._losses.unseen(deltas_N)

    def _reference(self, losses_N: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns the losses to compare with from now on: a loss that is not finite never replaces a finite one."""
        self.leave_out(int(np.isinf(losses_N).sum()), "a row's loss")  # NaN is that of a row without a label, too
        if self._before is None:
            return losses_N
        first, second = (losses_N, self._before) if self.reference == "previous" else (self._before, losses_N)
        return np.where(np.isfinite(first), first, second)

    def _require_enough(self, count: int, found: int, usable: int) -> None:
        have, way_out = HAVE_LABELS, SHOW_LABELS
        if found < usable:
            have, way_out = "are in the window", "use outside_weight above 0, a larger window"
        wanted = 1 if self.replacement else count
        require_enough(wanted, found, len(self.dataset), have, f"{way_out}, replacement: true")

    def state_dict(self) -> dict[str, Any]:
        """Returns the losses to compare with, once there are any; of seen losses, the last ones too."""
        return {"before": self._before} | ({"last": self._last} if self._losses.are_seen else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned."""
        self._before = _losses_of(state["before"])
        self._last = _losses_of(state.get("last"))


def _losses_of(kept: Any) -> NDArray[np.float32] | None:
    return None if kept is None else np.asarray(kept, dtype=np.float32)
