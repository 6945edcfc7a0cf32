"""What the log says of the weights: their mean, least and greatest since the last line, over all ranks."""

from __future__ import annotations

import torch
from accelerate import Accelerator


class WeightLog:
    """Collects on the device; nothing is waited for before a line is written."""

    def __init__(self) -> None:
        self._seen: torch.Tensor | None = None  # (4,) sum, rows, least, greatest

    def add(self, weights_B: torch.Tensor, labelled_B: torch.Tensor) -> None:
        """Adds the weights of a micro-batch.

        Args:
            weights_B: (B,) weights.
            labelled_B: (B,) which of them count.
        """
        low, high = torch.where(labelled_B, weights_B, torch.inf), torch.where(labelled_B, weights_B, -torch.inf)
        total = (weights_B * labelled_B).sum()
        new = torch.stack([total, labelled_B.sum().to(total), low.amin(), high.amax()])
        self._seen = new if self._seen is None else _joined(torch.stack([self._seen, new]))

    def metrics(self, accelerator: Accelerator) -> dict[str, float]:
        """Returns what was seen since the last call, and forgets it; empty where nothing was. Every rank calls it."""
        seen = self._seen if self._seen is not None else torch.tensor([0.0, 0.0, torch.inf, -torch.inf])
        self._seen = None
        if accelerator.num_processes > 1:
            seen = _joined(accelerator.gather(seen.to(accelerator.device)).view(-1, 4))
        total, rows, low, high = seen.tolist()
        if rows == 0:
            return {}
        return {"dataflex/weight_mean": total / rows, "dataflex/weight_min": low, "dataflex/weight_max": high}


def _joined(parts: torch.Tensor) -> torch.Tensor:
    """Returns the (4,) of several: (n, 4)."""
    return torch.stack([parts[:, 0].sum(), parts[:, 1].sum(), parts[:, 2].amin(), parts[:, 3].amax()])
