"""The n-grams of the rows of a dataset by bucket, dealt out to the ranks: counts of all of them, and sums for each row.

Counts are whole numbers and a row's sum depends on that row alone, so both are the same for any number of ranks. Two
passes over the rows take the memory of a thousand rows; nothing is kept of a row but its numbers.

Letters: n rows, G n-grams, B buckets, J targets.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from dataflex.core.permutation import RowOrder
from dataflex.core.ranks.by_row import sum_over_ranks
from dataflex.rows.columns import read_chunks
from dataflex.rows.lengths import row_lengths
from dataflex.scoring import gather_by_row
from dataflex.scoring.ngrams import hashed_ngrams
from dataflex.utils.progress import Progress
from numpy.typing import NDArray

from dataflex_selectors.parts.hashed_words import WordBuckets

if TYPE_CHECKING:
    from accelerate import Accelerator

FEATURES = ("words", "tokens")
_ROWS = 1024  # read at a time


@dataclass(frozen=True)
class RowGrams:
    """How the n-grams of rows are counted. Every rank makes the same one.

    Attributes:
        features: ``words`` of the decoded text, or ``tokens`` as they are.
        most: The largest n.
        buckets: Number of buckets, B.
        tokenizer: Turns tokens back into text for ``words``.
        accelerator: The run's accelerator; None means a single process.
    """

    features: str
    most: int
    buckets: int
    tokenizer: Any
    accelerator: Accelerator | None

    def counts(
        self, dataset: Any, rows: NDArray[np.int64], desc: str, enough: int | None = None, seed: int = 0
    ) -> NDArray[np.float64]:
        """Returns how often each bucket comes in the rows: (B,) whole numbers. Collective.

        Args:
            dataset: The tokenised dataset.
            rows: (n,) row numbers.
            desc: What a progress bar says.
            enough: How many n-grams are enough, at ``most`` for each token; then stretches of rows are drawn at random.
                None for all rows.
            seed: Of the draw.
        """
        chunks = _chunks(rows)
        if enough is not None and chunks:
            order = RowOrder(len(chunks), seed).take(0, len(chunks))
            grams_K = np.add.reduceat(row_lengths(dataset, rows), np.arange(0, len(rows), _ROWS))[order] * self.most
            chunks = [chunks[number] for number in order[: 1 + int(np.searchsorted(np.cumsum(grams_K), enough))]]
        counts_B = np.zeros(self.buckets)
        for buckets_G, _, _ in self._read(dataset, self._mine(chunks), desc):
            counts_B += np.bincount(buckets_G, minlength=self.buckets)
        return sum_over_ranks(counts_B, self.accelerator)

    def sums(
        self, dataset: Any, rows: NDArray[np.int64], values_BJ: NDArray[np.float64], desc: str
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Returns the sum of the values of each row's n-grams, (n, J), and its words or tokens, (n,). Collective.

        Args:
            dataset: The tokenised dataset.
            rows: (n,) row numbers.
            values_BJ: (B, J) a value of each bucket for each target.
            desc: What a progress bar says.
        """
        chunks = _chunks(np.arange(len(rows), dtype=np.int64))[self._rank :: self._ranks]
        found = [torch.empty((0, values_BJ.shape[1] + 1))]
        read = self._read(dataset, [rows[places] for places in chunks], desc)
        for places, (buckets_G, rows_G, words_b) in zip(chunks, read, strict=True):
            sums_bJ = [np.bincount(rows_G, values_B[buckets_G], len(places)) for values_B in values_BJ.T]
            found.append(torch.from_numpy(np.stack([*sums_bJ, words_b], axis=1).astype(np.float32)))
        places = np.concatenate([np.empty(0, dtype=np.int64), *chunks])
        numbers = gather_by_row(places, torch.cat(found), len(rows), self.accelerator)
        return numbers[:, :-1], numbers[:, -1].astype(np.int64)

    @property
    def _rank(self) -> int:
        return 0 if self.accelerator is None else self.accelerator.process_index

    @property
    def _ranks(self) -> int:
        return 1 if self.accelerator is None else self.accelerator.num_processes

    def _mine(self, chunks: list[NDArray[np.int64]]) -> list[NDArray[np.int64]]:
        return chunks[self._rank :: self._ranks]

    def _read(
        self, dataset: Any, chunks: list[NDArray[np.int64]], desc: str
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]]:
        """Yields the bucket of each n-gram of a stretch, its row there, and the words or tokens of each of its rows."""
        words = WordBuckets(self.most, self.buckets)
        with Progress(desc, sum(map(len, chunks))) as progress:
            for rows in chunks:
                tokens = [ids for chunk in read_chunks(dataset, rows) for ids in chunk]
                if self.features == "words":
                    yield words.of(self._texts(tokens))
                else:
                    grams_G, rows_G = hashed_ngrams(tokens, self.most)
                    lengths = np.array([len(ids) for ids in tokens], dtype=np.int64)
                    yield (grams_G % np.uint64(self.buckets)).astype(np.int64), rows_G, lengths
                progress.done(len(rows))

    def _texts(self, tokens: list[NDArray[np.int64]]) -> list[str]:
        found: list[str] = self.tokenizer.batch_decode([ids.tolist() for ids in tokens], skip_special_tokens=True)
        return found


def _chunks(rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    return [rows[start : start + _ROWS] for start in range(0, len(rows), _ROWS)]
