"""What a run says of its weights: mean, extremes, histogram, effective samples, mean by source, rows at both ends.

Letters: S samples of a micro-batch, X of several, K sources (0 where they are not known), P ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray

from dataflex.core.ranks.by_row import sum_over_ranks
from dataflex.objective.extreme_rows import ExtremeRows
from dataflex.run.score_summary import counted

MOST = 1024
"""Micro-batches that are kept on the device before the host reads them."""
MOST_SAMPLES = 2**16
"""Samples of these, at most, but for a single micro-batch with more."""
EMPTY = np.array([0.0, 0.0, 0.0, np.inf, -np.inf])  # sum of w, of w^2, samples, least, greatest
EDGES = (0, 0.05, *(round(0.05 + 0.1 * i, 2) for i in range(1, 11)), 1.25, 1.5, 1.75, 2, 3, 4, 6, 10, 20)
"""Of the histogram: 20 bins, the same for every run, 1 in the middle of one. What lies outside is in the outer ones."""

SourcesOf = Callable[[NDArray[np.int64]], NDArray[np.int64]]
"""Returns the number of each row's source."""


class WeightLog:
    """Keeps weights on the device as they are; synchronises when a line is written or a checkpoint saved.

    Args:
        sources: The names of the sources; empty where they are not known.
        sources_of: Which source a row is of, where they are known.

    Attributes:
        first: The global step at which the line that is collected for begins; None where nothing was collected.
        losses: Of the last line: source -> the mean unweighted ``loss`` of its tokens, and how many ``tokens``.
    """

    def __init__(self, sources: Sequence[str] = (), sources_of: SourcesOf | None = None) -> None:
        self._sources, self._sources_of = tuple(sources), sources_of
        self.losses: dict[str, Any] = {}
        self.forget()

    def forget(self) -> None:
        """Begins anew."""
        self._new: list[tuple[torch.Tensor, ...]] = []  # (4, S) and rows (S,) of each micro-batch, of this rank
        self._samples = 0
        self._own, self._all = self._empty(), self._empty()  # read from the device; and summed over the ranks
        self._own_ends, self._all_ends = ExtremeRows(), ExtremeRows()
        self.first: int | None = None

    def add(
        self,
        weights_S: torch.Tensor,
        labels_S: torch.Tensor,
        losses_S: torch.Tensor,
        rows_S: torch.Tensor | None,
        step: int,
    ) -> None:
        """Adds the weights of a micro-batch.

        Args:
            weights_S: (S,) weights.
            labels_S: (S,) labels of each sample; one without any does not count.
            losses_S: (S,) sums of the losses of their tokens.
            rows_S: (S,) the row of each, where batches say it.
            step: Global optimizer steps done.
        """
        self.first = step if self.first is None else self.first
        rows_S = torch.full_like(labels_S, -1, dtype=torch.int64) if rows_S is None else rows_S
        self._new.append((weights_S.detach(), labels_S, losses_S.detach(), rows_S))
        self._samples += len(weights_S)
        if len(self._new) >= MOST or self._samples >= MOST_SAMPLES:
            self._read()

    def settle(self, accelerator: Accelerator) -> None:
        """Adds up what all ranks collected, so that each holds it. Collective."""
        self._read()
        sums, extremes = self._own.copy(), self._own[3:5]
        sums[3:5] = 0.0
        sums = sum_over_ranks(sums, accelerator)
        ends = self._own_ends
        if accelerator.num_processes > 1:
            mine = np.concatenate([extremes.view(np.int64), ends.packed()])
            everyone = torch.as_tensor(accelerator.gather(torch.from_numpy(mine).to(accelerator.device)))
            found_PX = everyone.view(accelerator.num_processes, -1).cpu().numpy()
            extremes_P2 = np.ascontiguousarray(found_PX[:, :2]).view(np.float64)
            extremes = np.array([extremes_P2[:, 0].min(), extremes_P2[:, 1].max()])
            ends = ExtremeRows.joined([ExtremeRows.unpacked(part) for part in found_PX[:, 2:]])
        sums[3:5] = extremes
        self._all = _joined(np.stack([self._all, sums]))
        self._all_ends = ExtremeRows.joined([self._all_ends, ends])
        self._own, self._own_ends = self._empty(), ExtremeRows()

    def line(self, accelerator: Accelerator) -> dict[str, Any]:
        """Returns what was collected since the last line, and forgets it; empty where nothing was. Collective."""
        self.settle(accelerator)
        found, ends = self._all, self._all_ends
        self.forget()
        total, squares, samples, low, high = found[:5].tolist()
        self.losses = {}
        if samples == 0:
            return {}
        effective = total**2 / squares if squares > 0 else 0.0
        bins, by_source = len(EDGES) - 1, {}
        if self._sources:
            sums_K, counts_K, losses_K, tokens_K = found[5 + bins :].reshape(4, -1).tolist()
            by_source = {n: s / c for n, s, c in zip(self._sources, sums_K, counts_K, strict=True) if c}
            self.losses = {
                name: {"loss": loss / tokens, "tokens": int(tokens)}
                for name, loss, tokens in zip(self._sources, losses_K, tokens_K, strict=True)
                if tokens
            }
        return {
            "mean": total / samples,
            "min": low,
            "max": high,
            "samples": int(samples),
            "effective": effective,
            "effective_share": effective / samples,
            "histogram": {"edges": list(EDGES), "counts": found[5 : 5 + bins].astype(np.int64).tolist()},
            **ends.named(),
        } | ({"sources": by_source} if by_source else {})

    def state_dict(self) -> dict[str, Any]:
        """Returns what was collected, once it is settled."""
        return {"sums": self._all, "first": self.first, "ends": self._all_ends.packed()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned; of a version without histograms, what that collected is lost."""
        self.forget()
        sums = np.array(state["sums"], dtype=np.float64)
        if sums.shape == self._all.shape:
            self._all, self.first = sums, state["first"]
            self._all_ends = ExtremeRows.unpacked(np.array(state["ends"], dtype=np.int64))

    def _empty(self) -> NDArray[np.float64]:
        return np.concatenate([EMPTY, np.zeros(len(EDGES) - 1 + 4 * len(self._sources))])

    def _read(self) -> None:
        if not self._new:
            return
        weights, labels, losses, rows = (torch.cat(parts) for parts in zip(*self._new, strict=True))
        numbers = torch.stack([weights, labels.to(weights), losses.to(weights)]).cpu().numpy().astype(np.float64)
        rows_X = rows.cpu().numpy()
        self._new, self._samples = [], 0
        there_X = numbers[1] > 0
        (w_X, labels_X, losses_X), rows_X = numbers[:, there_X], rows_X[there_X]
        if not len(w_X):
            return
        parts = [np.array([w_X.sum(), np.square(w_X).sum(), len(w_X), w_X.min(), w_X.max()])]
        parts.append(np.array(counted(w_X, np.array(EDGES)), dtype=np.float64))
        if self._sources and self._sources_of is not None:
            numbers_X, size = self._sources_of(rows_X), len(self._sources)
            parts += [np.bincount(numbers_X, of, minlength=size) for of in (w_X, None, losses_X, labels_X)]
        self._own = _joined(np.stack([self._own, np.concatenate(parts)]))
        self._own_ends = ExtremeRows.joined([self._own_ends, ExtremeRows.of(rows_X, w_X)])


def _joined(parts_PX: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the sums and extremes of several."""
    found = parts_PX.sum(axis=0)
    found[3], found[4] = parts_PX[:, 3].min(), parts_PX[:, 4].max()
    return np.asarray(found)
