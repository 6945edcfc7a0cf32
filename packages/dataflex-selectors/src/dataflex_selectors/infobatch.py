"""``infobatch``: rows that are learnt well are left out by chance, and those of them that stay count more.

Qin et al., InfoBatch: Lossless Training Speed Up by Unbiased Dynamic Data Pruning, ICLR 2024, arXiv 2303.04947.
Training goes over the rows in passes. At the start of each, with l_i the loss that training saw last of row i:

    well learnt   l_i < mean of all l                                            equation 2
    each of these is left out with probability r; the others of them weigh 1 / (1 - r)
    all other rows are kept, with weight 1

so the expected gradient of a pass is that of all rows. In the last part of the run, from the share ``delta`` of its
steps on, nothing is left out. Losses are those that training has seen: no pass of the model is made for them.

    draw: number        (1 - r) n of the n well-learnt rows stay, the fraction rounded up or down by chance
    draw: independent   each of them stays by itself, as in the paper

A pass ends where its rows do, also in the middle of a stretch; the rows of the next one are chosen by the losses as of
the update. What has not been seen yet is kept. Cost: two numbers per row and a permutation per pass.
Rejected: a start score for rows that were not seen, as in the authors' program; where losses begin above it, those
rows would count as learnt.

Letters: N rows, n those well learnt, q = 1 - r.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from dataflex.core.context import UpdateContext
from dataflex.core.cost import Ahead, Cost
from dataflex.core.parameter_checks import between, one_of, require
from dataflex.core.registry import register_selector
from dataflex.train.selector.base_selector import Selection, Selector
from numpy.typing import NDArray

from dataflex_selectors.parts.row_losses import RowLosses

if TYPE_CHECKING:
    import torch

DRAWS = ("number", "independent")
LEAST_KEPT = 0.1  # of the authors' package, whatever r is
WITHOUT_LOSSES = "run it in a trainer of dataflex, which keeps them"
_ROUNDING = 1e-9  # 0.2 of 5 rows is one row, not 0.9999999999999998


def well_learnt(losses_N: NDArray[np.floating[Any]]) -> NDArray[np.bool_]:
    """Returns which rows have a loss below the mean: (N,). A row at the mean, or without a loss, is not among them.

    Args:
        losses_N: (N,) the losses seen last, NaN for none.
    """
    known_N: NDArray[np.bool_] = ~np.isnan(losses_N)
    if not known_N.any():
        return known_N
    with np.errstate(invalid="ignore"):
        return np.asarray(losses_N < losses_N[known_N].mean(dtype=np.float64))


def number_kept(count: int, keep: float, chance: float) -> int:
    """Returns how many of ``count`` rows stay: ``keep`` times that, its fraction rounded up with that probability.

    Args:
        count: n.
        keep: q.
        chance: Uniform in [0, 1). 0 rounds down, as the authors' program does.
    """
    return min(count, math.floor(keep * count + chance + _ROUNDING))


def kept_of(learnt: NDArray[np.int64], keep: float, draw: str, generator: np.random.Generator) -> NDArray[np.int64]:
    """Returns which of the well-learnt rows stay, each with probability q: some of ``learnt``.

    Args:
        learnt: (n,) row numbers.
        keep: q.
        draw: One of :data:`DRAWS`.
        generator: The source of randomness.
    """
    if draw == "independent":
        return learnt[generator.random(len(learnt)) < keep]
    return generator.choice(learnt, number_kept(len(learnt), keep, generator.random()), replace=False)


@register_selector("infobatch")
class InfoBatchSelector(Selector):
    """Goes over the rows and leaves out some that are learnt well; those of them that stay weigh more (InfoBatch).

    Args:
        prune: r, the share of the well-learnt rows that a pass leaves out, from 0 to below 1.
        delta: From this share of the run's steps on every row is trained on, with weight 1.
        draw: number keeps a fixed number of the well-learnt rows; independent decides row by row.
        least_kept: However high ``prune`` is, this share of the well-learnt rows stays.
        **run: What every selector is given.

    Raises:
        ConfigError: A parameter is out of its range; the message holds all that are.
    """

    replacement = True  # a stretch may be longer than a pass
    weighs = True
    takes_seen = True

    def __init__(
        self,
        *,
        prune: float = 0.5,
        delta: float = 0.875,
        draw: str = "number",
        least_kept: float = LEAST_KEPT,
        **run: Any,
    ) -> None:
        super().__init__(**run)
        require(
            "infobatch selector",
            between("prune", prune, 0, 1, exclusive=True),
            between("delta", delta, 0, 1),
            one_of("draw", draw, DRAWS),
            between("least_kept", least_kept, 0, 1),
        )
        self.keep = min(1.0, max(float(least_kept), 1 - prune))
        self.delta, self.draw = float(delta), draw
        self._losses = RowLosses(self, "seen", 0, None, without_seen=WITHOUT_LOSSES)
        self._number = -1  # of the pass
        self._cursor = 0  # rows of it that are trained on
        self._prunes = True
        self._kept_N: NDArray[np.bool_] = np.zeros(len(self.dataset), dtype=np.bool_)
        self._learnt_N: NDArray[np.bool_] = np.zeros(len(self.dataset), dtype=np.bool_)
        self._begun: list[dict[str, int]] = []  # the passes that the last choice began
        self._order: NDArray[np.int64] | None = None  # of the rows that are kept; made again after a resume

    @classmethod
    def cost(cls, params: Mapping[str, Any], ahead: Ahead) -> Cost:
        """The losses are those of training. See the base class."""
        return Cost(host_bytes=22 * ahead.rows.rows, state_bytes=ahead.rows.rows / 4)

    def select(self, model: torch.nn.Module, step_id: int, num_samples: int, **kwargs: Any) -> Selection:
        """Returns the next ``num_samples`` rows of the pass, and of those after it; the scores are their last losses.

        Raises:
            ComponentError: The run keeps no seen losses for these rows.
        """
        context: UpdateContext = kwargs["context"]
        losses_N = self._losses.now(model, step_id, context.scores)
        self._begun = []
        prunes = step_id < self.delta * context.total_steps
        if self._number < 0 or prunes != self._prunes:
            self._begin(losses_N, prunes)
        rows = np.empty(num_samples, dtype=np.int64)
        weights = np.empty(num_samples)
        done = 0
        while done < num_samples:
            order = self._rows_in_order()
            if self._cursor == len(order):
                self._begin(losses_N, prunes)
                continue
            taken = order[self._cursor : self._cursor + num_samples - done]
            rows[done : done + len(taken)] = taken
            weights[done : done + len(taken)] = np.where(self._learnt_N[taken], 1 / self.keep, 1.0)
            self._cursor += len(taken)
            done += len(taken)
        return Selection(rows, losses_N[rows], weights, candidates=losses_N)

    def _begin(self, losses_N: NDArray[np.float32], prunes: bool) -> None:
        """Begins a pass with the rows that it is to train on."""
        self._number, self._cursor, self._prunes, self._order = self._number + 1, 0, prunes, None
        self._learnt_N = well_learnt(losses_N) if prunes and self.keep < 1 else np.zeros(len(losses_N), dtype=np.bool_)
        self._kept_N = ~self._learnt_N
        learnt = np.flatnonzero(self._learnt_N)
        self._kept_N[kept_of(learnt, self.keep, self.draw, self.generator(f"rows of pass {self._number}"))] = True
        size, kept = len(losses_N), int(self._kept_N.sum())
        self._begun.append({"pass": self._number + 1, "of": size, "left_out": size - kept})

    def details(self) -> dict[str, Any]:
        """Returns the passes that the last choice began: their number from 1, their rows, how many are left out."""
        return {"passes_begun": list(self._begun)} if self._begun else {}

    def _rows_in_order(self) -> NDArray[np.int64]:
        """Returns the rows of the pass in the order of training."""
        if self._order is None:
            generator = self.generator(f"order of pass {self._number}")
            self._order = generator.permutation(np.flatnonzero(self._kept_N))
        return self._order

    def state_dict(self) -> dict[str, Any]:
        """Returns where the pass is, and two bits for each row: whether it is kept, and whether it was learnt."""
        return {
            "number": self._number,
            "cursor": self._cursor,
            "prunes": self._prunes,
            "kept": np.packbits(self._kept_N),
            "learnt": np.packbits(self._learnt_N),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned."""
        self._number, self._cursor, self._prunes = int(state["number"]), int(state["cursor"]), bool(state["prunes"])
        size = len(self.dataset)
        self._kept_N, self._learnt_N = (
            np.unpackbits(np.asarray(state[key], dtype=np.uint8), count=size).astype(np.bool_)
            for key in ("kept", "learnt")
        )
        self._order = None
