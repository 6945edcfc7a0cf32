"""What a run says of its weights: their mean, extremes, effective number of samples and mean by source.

Letters: S samples of a micro-batch, K sources (0 where they are not known), P micro-batches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray

from dataflex.core.ranks.by_row import sum_over_ranks

MOST = 1024
"""Micro-batches that are kept on the device before the host reads them."""
EMPTY = np.array([0.0, 0.0, 0.0, np.inf, -np.inf])  # sum of w, of w^2, samples, least, greatest


class WeightLog:
    """Accumulates on the device; synchronises when a line is written or a checkpoint saved.

    Args:
        sources: The names of the sources; empty where they are not known.

    Attributes:
        first: The global step at which the line that is collected for begins; None where nothing was collected.
    """

    def __init__(self, sources: Sequence[str] = ()) -> None:
        self._sources = tuple(sources)
        self.forget()

    def forget(self) -> None:
        """Begins anew."""
        self._new: list[torch.Tensor] = []  # (5 + 2K,) each, of this rank
        self._own, self._all = self._empty(), self._empty()  # read from the device; and summed over the ranks
        self.first: int | None = None

    def add(self, weights_S: torch.Tensor, labelled_S: torch.Tensor, sources_S: torch.Tensor | None, step: int) -> None:
        """Adds the weights of a micro-batch.

        Args:
            weights_S: (S,) weights.
            labelled_S: (S,) which of them count.
            sources_S: (S,) the number of each one's source, where there are any.
            step: Global optimizer steps done.
        """
        self.first = step if self.first is None else self.first
        weights_S = torch.where(labelled_S, weights_S, 0.0)
        low = torch.where(labelled_S, weights_S, torch.inf).amin()
        high = torch.where(labelled_S, weights_S, -torch.inf).amax()
        found = torch.stack([weights_S.sum(), weights_S.square().sum(), labelled_S.sum().to(low), low, high])
        if self._sources and sources_S is not None:
            kinds_K = torch.arange(len(self._sources), device=sources_S.device)
            of_source_KS = (sources_S[None, :] == kinds_K[:, None]) & labelled_S[None, :]
            found = torch.cat([found, (of_source_KS * weights_S).sum(dim=1), of_source_KS.sum(dim=1).to(found)])
        self._new.append(found)
        if len(self._new) >= MOST:
            self._read()

    def settle(self, accelerator: Accelerator) -> None:
        """Adds up what all ranks collected, so that each holds it. Collective."""
        self._read()
        sums, extremes = self._own.copy(), self._own[3:5]
        sums[3:5] = 0.0
        sums = sum_over_ranks(sums, accelerator)
        if accelerator.num_processes > 1:
            mine = torch.from_numpy(extremes.astype(np.float32)).to(accelerator.device)
            everyone = torch.as_tensor(accelerator.gather(mine)).view(-1, 2).cpu().numpy().astype(np.float64)
            extremes = np.array([everyone[:, 0].min(), everyone[:, 1].max()])
        sums[3:5] = extremes
        self._all = _joined(np.stack([self._all, sums]))
        self._own = self._empty()

    def line(self, accelerator: Accelerator) -> dict[str, Any]:
        """Returns what was collected since the last line, and forgets it; empty where nothing was. Collective."""
        self.settle(accelerator)
        found = self._all
        self.forget()
        total, squares, samples, low, high = found[:5].tolist()
        if samples == 0:
            return {}
        effective = total**2 / squares if squares > 0 else 0.0
        by_source = {}
        if self._sources:
            sums_K, counts_K = found[5:].reshape(2, -1).tolist()
            by_source = {n: s / c for n, s, c in zip(self._sources, sums_K, counts_K, strict=True) if c}
        return {
            "mean": total / samples,
            "min": low,
            "max": high,
            "samples": int(samples),
            "effective": effective,
            "effective_share": effective / samples,
        } | ({"sources": by_source} if by_source else {})

    def state_dict(self) -> dict[str, Any]:
        """Returns what was collected, once it is settled."""
        return {"sums": self._all, "first": self.first}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned."""
        self.forget()
        self._all, self.first = np.array(state["sums"], dtype=np.float64), state["first"]

    def _empty(self) -> NDArray[np.float64]:
        return np.concatenate([EMPTY, np.zeros(2 * len(self._sources))])

    def _read(self) -> None:
        if self._new:
            found_PX = torch.stack(self._new).cpu().numpy().astype(np.float64)
            self._own, self._new = _joined(np.concatenate([self._own[None], found_PX])), []


def _joined(parts_PX: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the sums and extremes of several."""
    found = parts_PX.sum(axis=0)
    found[3], found[4] = parts_PX[:, 3].min(), parts_PX[:, 4].max()
    return np.asarray(found)
