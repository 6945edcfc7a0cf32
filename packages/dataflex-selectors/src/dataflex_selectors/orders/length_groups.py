"""Rows of similar length side by side, for speed: a batch is padded to its longest row.

Rows are shuffled, cut into windows, sorted by length inside of each, and cut into the batches that a device takes at
once; then all batches are shuffled. So which rows are compared is drawn, no stretch of training has longer rows than
another, and what is padded is what the lengths of neighbours in a window differ by. The larger the window, the less
padding, and the more alike the rows of a batch.

Letters: S rows, W of a window, B of a batch.
"""

from __future__ import annotations

import numpy as np
from dataflex.core.context import UpdateContext
from dataflex.core.parameter_checks import count, count_or_null, require
from dataflex.core.registry import register_order
from numpy.typing import NDArray

from dataflex_selectors.orders.shuffle import shuffled
from dataflex_selectors.orders.without_score import ScoredOrder

_PIECE = 1 << 20  # rows sorted at once, for memory


@register_order("length")
class LengthOrder(ScoredOrder):
    """Rows of similar length in one batch, batches in a random order.

    Args:
        window: Rows that are sorted by length together; rounded down to whole batches, and at least one batch.
        batch: Rows that stay together; None: those that a device takes at once (``per_device_train_batch_size``).

    Raises:
        ConfigError: A parameter is out of its range.
    """

    by = "length"

    def __init__(self, window: int = 1024, batch: int | None = None) -> None:
        what = "those that a device takes at once"
        require("length order", count("window", window), count_or_null("batch", batch, what))
        self.window, self.batch = window, batch

    def arrange(self, scores: NDArray[np.float64], *, context: UpdateContext) -> NDArray[np.integer]:
        """Returns the rows in batches of similar length; what does not fill a batch comes last. See the base class."""
        generator = self.generator(context.update)
        rows_S = shuffled(len(scores), generator)
        scored = self.scored(scores)
        if scored < len(scores):
            missing_S = np.isnan(scores)
            rows_S = np.concatenate([rows_S[~missing_S[rows_S]], np.flatnonzero(missing_S).astype(rows_S.dtype)])
        batch = min(self.batch or context.device_batch, max(scored, 1))
        sort_windows(rows_S[:scored], scores, max(1, self.window // batch) * batch)
        whole = scored // batch * batch
        batches = rows_S[:whole].reshape(-1, batch)
        rows_S[:whole] = batches[shuffled(len(batches), generator)].reshape(-1)
        return rows_S


def sort_windows(rows_S: NDArray[np.signedinteger], lengths: NDArray[np.float64], window: int) -> None:
    """Sorts the rows of each window by length, in their place; equal lengths stay as they stand.

    Args:
        rows_S: (S,) rows.
        lengths: The length of each row there is.
        window: Rows of a window, W; the last may have fewer.
    """
    whole = len(rows_S) // window * window
    many = max(1, _PIECE // window) * window
    for start in range(0, whole, many):
        piece = rows_S[start : min(start + many, whole)].reshape(-1, window)
        piece[:] = np.take_along_axis(piece, np.argsort(lengths[piece], axis=1, kind="stable"), axis=1)
    rest = rows_S[whole:]
    rest[:] = rest[np.argsort(lengths[rest], kind="stable")]
