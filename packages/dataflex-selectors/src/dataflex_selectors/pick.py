"""From the scores of rows to the rows that are trained on.

Letters: N rows, J target sets.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dataflex_selectors.drawing import draw
from dataflex_selectors.enough import SHOW_LABELS, require_enough

MODES = ("topk", "sample", "quota")


def pick(
    scores_NJ: NDArray[np.floating], count: int, mode: str, temperature: float, generator: np.random.Generator
) -> NDArray[np.int64]:
    """Returns ``count`` places in [0, N), best first; a row with a NaN score is never among them.

    Args:
        scores_NJ: (N, J) score of each row for each target set.
        count: How many rows; at most as many as have scores.
        mode: ``topk``: the highest scores for whichever set suits the row best. ``sample``: drawn without replacement
            with probability proportional to exp(z / temperature), z being that score in standard deviations, so that
            the rows differ from update to update. ``quota``: the sets take their best row in turn.
        temperature: Of ``sample``; towards 0 it becomes ``topk``.
        generator: The source of randomness.

    Raises:
        ComponentError: Fewer rows have a score than are asked for.
    """
    best_N = scores_NJ.max(axis=1).astype(np.float64)  # NaN where any is
    usable = np.flatnonzero(~np.isnan(best_N))
    require_enough(count, len(usable), len(best_N), "have a score", f"{SHOW_LABELS}, more candidates")
    if mode == "quota":
        return _in_turn(scores_NJ, count)
    if mode == "topk":
        return np.argsort(-best_N, kind="stable")[:count]
    z = (best_N[usable] - best_N[usable].mean()) / max(float(best_N[usable].std()), 1e-12)
    # Draws compare e / p: a p of e^-600 comes last and not never.
    p = np.exp(np.maximum((z - z.max()) / temperature, -600.0))
    return np.asarray(usable[draw(p / p.sum(), count, False, generator)])


def _in_turn(scores_NJ: NDArray[np.floating], count: int) -> NDArray[np.int64]:
    """Returns the rows that J sets choose in turn, each its best row that is still there."""
    orders = [iter(np.argsort(-scores_NJ[:, j], kind="stable")) for j in range(scores_NJ.shape[1])]
    taken = np.isnan(scores_NJ).any(axis=1)
    chosen: list[int] = []
    while len(chosen) < count:
        for order in orders:
            row = next((int(row) for row in order if not taken[row]), None)
            if row is not None and len(chosen) < count:
                taken[row] = True
                chosen.append(row)
    return np.array(chosen, dtype=np.int64)
