"""The losses of the steps between two updates, source by source."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def not_finite(losses_K: NDArray[np.float64], tokens_K: NDArray[np.int64]) -> int:
    """Returns how many sources had tokens in a step, but a loss that is not finite."""
    return int(((tokens_K > 0) & ~np.isfinite(losses_K)).sum())


class LossWindow:
    """Token means over the steps since the window was last closed.

    Args:
        sources: K.
    """

    def __init__(self, sources: int) -> None:
        self._sums_K: NDArray[np.float64] = np.zeros(sources)
        self._tokens_K: NDArray[np.int64] = np.zeros(sources, dtype=np.int64)
        self._last_K: NDArray[np.float64] = np.full(sources, np.nan)

    def add(self, losses_K: NDArray[np.float64], tokens_K: NDArray[np.int64]) -> int:
        """Adds a step: (K,) mean token losses, NaN where there were no tokens, and (K,) tokens.

        Returns:
            How many sources were left out, with their tokens: those whose loss is not finite.
        """
        seen_K = (tokens_K > 0) & np.isfinite(losses_K)
        self._sums_K += np.where(seen_K, losses_K, 0.0) * tokens_K
        self._tokens_K += np.where(seen_K, tokens_K, 0)
        return not_finite(losses_K, tokens_K)

    def close(self) -> NDArray[np.float64]:
        """Returns the (K,) means of the window, NaN for a source without tokens, and begins another."""
        means_K = np.full(len(self._sums_K), np.nan)
        np.divide(self._sums_K, self._tokens_K, out=means_K, where=self._tokens_K > 0)
        self._sums_K, self._tokens_K = np.zeros_like(self._sums_K), np.zeros_like(self._tokens_K)
        self._last_K = means_K
        return means_K.copy()

    def last(self, names: Sequence[str]) -> dict[str, float]:
        """Returns source -> mean of the window closed last, for the sources with tokens in it; for the trace."""
        return {name: float(x) for name, x in zip(names, self._last_K, strict=True) if np.isfinite(x)}

    def state_dict(self) -> dict[str, Any]:
        """Returns the open window."""
        return {"sums": self._sums_K.copy(), "tokens": self._tokens_K.copy()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned."""
        self._sums_K = np.array(state["sums"], dtype=np.float64)
        self._tokens_K = np.array(state["tokens"], dtype=np.int64)
