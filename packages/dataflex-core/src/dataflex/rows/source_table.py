"""The sources of a train dataset: where each begins, its size in rows and tokens, and what rows take of each."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataflex.rows.lengths import lengths_at_hand, row_lengths, token_total
from dataflex.rows.streams import Stream
from dataflex.rows.views import MixedSources


class SourceTable:
    """Looks rows up. No row is read; tokens are known where the lengths of rows are at hand.

    Args:
        dataset: The train dataset.
        name: What it is called where it is one source.

    Attributes:
        names: (K) the sources.
        first: (K) the first row of each.
        sizes: (K) rows of each; None for a stream, or where it has no length.
        rows: All rows; None where a size is not known.
        knows_lengths: Whether :meth:`lengths` gives any.
    """

    def __init__(self, dataset: Any, name: str) -> None:
        self._dataset = dataset
        parts: Sequence[Any] = [dataset]
        self.names: tuple[str, ...] = (name,)
        self.first = [0]
        if isinstance(dataset, MixedSources):
            parts, self.names, self.first = dataset.sources, dataset.names, dataset.offsets[:-1].tolist()
        self._parts = parts
        streams = any(isinstance(part, Stream) for part in parts)
        self.sizes = [None if streams or not isinstance(part, Sized) else len(part) for part in parts]
        known = [size for size in self.sizes if size is not None]
        self.rows = sum(known) if len(known) == len(parts) else None
        self.knows_lengths = lengths_at_hand(dataset)

    def described(self) -> list[dict[str, Any]]:
        """Returns ``name``, ``first``, ``rows`` and ``tokens`` of each source; null for what is not known."""
        columns = zip(self.names, self.first, self.sizes, self._parts, strict=True)
        return [
            {"name": name, "first": first, "rows": size, "tokens": token_total(part)}
            for name, first, size, part in columns
        ]

    def of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the number of each row's source: same shape, in [0, K)."""
        if not isinstance(self._dataset, MixedSources):
            return np.zeros(rows.shape, dtype=np.int64)
        return self._dataset.sources_of(rows)

    def lengths(self, rows: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """Returns the tokens of rows: (S,); None where these are not at hand."""
        return row_lengths(self._dataset, rows) if self.knows_lengths else None

    def counted(self, rows: NDArray[np.int64], lengths: NDArray[np.int64] | None) -> dict[str, dict[str, int | None]]:
        """Returns source -> ``rows`` and ``tokens`` of some rows, of those that have any.

        Args:
            rows: (S,) row numbers.
            lengths: (S,) their tokens; None where they are not known.
        """
        numbers = self.of(rows)
        rows_K = np.bincount(numbers, minlength=len(self.names))
        tokens_K: list[int | None] = [None] * len(self.names)
        if lengths is not None:
            tokens_K = np.bincount(numbers, lengths, minlength=len(self.names)).astype(np.int64).tolist()
        found = zip(self.names, rows_K.tolist(), tokens_K, strict=True)
        return {name: {"rows": count, "tokens": tokens} for name, count, tokens in found if count}
