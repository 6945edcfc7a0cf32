"""From the scores of rows to the rows that are trained on.

Letters: N rows, J target sets.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from dataflex.core.errors import Problem
from dataflex.core.parameter_checks import between, one_of, positive
from numpy.typing import NDArray

from dataflex_selectors.parts.drawing import draw
from dataflex_selectors.parts.enough import SHOW_LABELS, require_enough
from dataflex_selectors.parts.finite_scores import scored_places, standardised
from dataflex_selectors.parts.ranking import first_places

MODES = ("topk", "sample", "quota")


def picking_problems(decay: Any, mode: Any, temperature: Any, key: str = "temperature") -> list[Problem | None]:
    """Returns what is wrong with the parameters of selectors that average scores over updates and pick by them.

    Args:
        decay: Factor on the older scores at each update.
        mode: See :func:`pick`.
        temperature: See :func:`pick`.
        key: The parameter that ``temperature`` is of.
    """
    return [between("decay", decay, 0, 1), one_of("mode", mode, MODES), positive(key, temperature)]


def pick(
    scores_NJ: NDArray[np.floating],
    count: int,
    mode: str,
    temperature: float,
    generator: np.random.Generator,
    rows_N: NDArray[np.int64] | None = None,
) -> NDArray[np.int64]:
    """Returns ``count`` places in [0, N), best first.

    A row with a NaN score, for any set, or with -inf for all of them is never among them.

    Args:
        scores_NJ: (N, J) score of each row for each target set; -inf keeps the row from that set.
        count: How many rows; at most as many as have scores.
        mode: ``topk``: the highest scores for whichever set suits the row best. ``sample``: drawn without replacement
            with probability proportional to exp(z / temperature), z being that score in standard deviations, so that
            the rows differ from update to update. ``quota``: the sets take their best row in turn.
        temperature: Of ``sample``; towards 0 it becomes ``topk``.
        generator: The source of randomness.
        rows_N: (N,) the rows that the places stand for, for messages; None where they are row numbers.

    Raises:
        ComponentError: Fewer rows have a score than are asked for, or one is +inf.
    """
    best_N = scores_NJ.max(axis=1).astype(np.float64)  # NaN where any is
    usable = scored_places(best_N, rows_N)
    require_enough(count, len(usable), len(best_N), "have a score", f"{SHOW_LABELS}, more candidates")
    if mode == "quota":
        return _in_turn(scores_NJ, usable, count)
    if mode == "topk":
        return np.asarray(usable[first_places(count, -best_N[usable])])
    return np.asarray(usable[draw(standardised(best_N[usable]), count, False, generator, temperature)])


def _in_turn(scores_NJ: NDArray[np.floating], usable: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Returns the rows that J sets choose in turn, each its best row that is not taken yet and that it may take."""
    orders = []
    for scores_N in scores_NJ.T:
        allowed = usable[scores_N[usable] > -np.inf]
        orders.append(iter(allowed[first_places(count, -scores_N[allowed])]))  # no set takes more
    taken = np.zeros(len(scores_NJ), dtype=np.bool_)
    chosen: list[int] = []
    while len(chosen) < count:  # ends: every usable row is allowed to some set
        for order in orders:
            row = next((int(row) for row in order if not taken[row]), None)
            if row is not None and len(chosen) < count:
                taken[row] = True
                chosen.append(row)
    return np.array(chosen, dtype=np.int64)
