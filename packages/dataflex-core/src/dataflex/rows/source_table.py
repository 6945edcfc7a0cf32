"""The sources of a train dataset: where each begins, its size in rows and tokens, and what rows take of each."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataflex.rows.lengths import lengths_at_hand, row_lengths, token_total
from dataflex.rows.split_sources import SplitSources
from dataflex.rows.streams import Stream
from dataflex.rows.views import MixedSources


class SourceTable:
    """Looks rows up. No row is read; tokens are known where the lengths of rows are at hand.

    Args:
        dataset: The train dataset.
        name: What it is called where it is one source.
        told: Names of sources and (N,) the number of each row's, where the dataset is made of several and does not tell
            them apart itself.

    Attributes:
        names: (K) the sources.
        first: (K) the first row of each; None for each where their rows are not one after the other.
        codes: (N,) the number of each row's source in that case, else None.
        sizes: (K) rows of each; None for a stream, or where it has no length.
        rows: All rows; None where a size is not known.
        knows_lengths: Whether :meth:`lengths` gives any.
    """

    def __init__(
        self, dataset: Any, name: str, told: tuple[Sequence[str], NDArray[np.integer[Any]]] | None = None
    ) -> None:
        self._dataset = dataset
        parts: Sequence[Any] = [dataset]
        self.names: tuple[str, ...] = (name,)
        self.first: list[int | None] = [0]
        self.codes: NDArray[np.integer[Any]] | None = None
        self._starts: NDArray[np.int64] | None = None  # (K,) of sources that were told and follow each other
        if isinstance(dataset, MixedSources):
            parts, self.names, self.first = dataset.sources, dataset.names, dataset.offsets[:-1].tolist()
        elif told is not None:
            self._tell(tuple(told[0]), told[1])
        self._parts = parts
        streams = any(isinstance(part, Stream) for part in parts)
        self.sizes = [None if streams or not isinstance(part, Sized) else len(part) for part in parts]
        known = [size for size in self.sizes if size is not None]
        self.rows = sum(known) if len(known) == len(parts) else None
        if told is not None and len(parts) == 1 and len(self.names) > 1:
            self.sizes = np.bincount(told[1], minlength=len(self.names)).tolist()
        self.knows_lengths = lengths_at_hand(dataset)

    def described(self) -> list[dict[str, Any]]:
        """Returns ``name``, ``first``, ``rows`` and ``tokens`` of each source; null for what is not known.

        Of groups of rows also the ``words`` that stand out in them.
        """
        words = self._dataset.words if isinstance(self._dataset, SplitSources) else {}
        columns = zip(self.names, self.first, self.sizes, self._tokens(), strict=True)
        return [
            {"name": name, "first": first, "rows": size, "tokens": tokens}
            | ({"words": list(words[name])} if name in words else {})
            for name, first, size, tokens in columns
        ]

    def of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the number of each row's source: same shape, in [0, K)."""
        if self.codes is not None:
            return self.codes[rows].astype(np.int64)
        if self._starts is not None:
            return np.searchsorted(self._starts, rows, side="right") - 1
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

    def _tell(self, names: tuple[str, ...], codes_N: NDArray[np.integer[Any]]) -> None:
        """Takes the sources of the rows: by where each begins, or by the number of each row's."""
        self.names, self.first = names, [None] * len(names)
        if (np.diff(codes_N) < 0).any():
            self.codes = codes_N
            return
        self._starts = np.searchsorted(codes_N, np.arange(len(names)))
        self.first = self._starts.tolist()

    def _tokens(self) -> list[int | None]:
        if len(self._parts) == len(self.names):
            return [token_total(part) for part in self._parts]
        lengths = self.lengths(np.arange(self.rows or 0, dtype=np.int64))
        if lengths is None:
            return [None] * len(self.names)
        numbers = self.of(np.arange(len(lengths), dtype=np.int64))
        return [int(total) for total in np.bincount(numbers, lengths, minlength=len(self.names))]
