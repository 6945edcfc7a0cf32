"""What a sample of a micro-batch is: a row, or one document of a row into which several were packed.

A packed row says where its documents begin by its ``position_ids``, which count from 0 again in each; LLaMA-Factory's
``packing`` and ``neat_packing`` write them, and so does transformers' flattening collator. Sums over documents are sums
over a padded (S, L), not atomic additions, so a GPU repeats them to the last bit.

Letters: B rows of the micro-batch, T tokens, S samples, L tokens of the longest sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F

from dataflex.core.errors import ComponentError


class Samples(Protocol):
    """How tokens are taken together. The loss that predicts a token stands one position before it."""

    def loss_sums(self, values_BT: torch.Tensor) -> torch.Tensor:
        """Returns (S,) sums over the positions that predict a token of the sample."""

    def label_sums(self, values_BT: torch.Tensor) -> torch.Tensor:
        """Returns (S,) sums over the tokens of the sample."""

    def at_losses(self, values_S: torch.Tensor) -> torch.Tensor:
        """Returns (B, T), or (B, 1), the value of the sample whose token each position predicts."""

    def apart(self, values_BT: torch.Tensor, fill: float = 0.0) -> torch.Tensor:
        """Returns (S, L, ...) the samples one by one, padded: from (B, T, ...)."""

    def of_rows(self, values_B: torch.Tensor) -> torch.Tensor:
        """Returns (S,) the value of each sample's row: from (B,)."""

    def number(self, rows: int) -> int:
        """Returns S for B rows, without a look at the device."""


class Rows:
    """A sample is a row: S = B, L = T."""

    def loss_sums(self, values_BT: torch.Tensor) -> torch.Tensor:
        """See :class:`Samples`."""
        return values_BT.sum(dim=1)

    def label_sums(self, values_BT: torch.Tensor) -> torch.Tensor:
        """See :class:`Samples`."""
        return values_BT.sum(dim=1)

    def at_losses(self, values_S: torch.Tensor) -> torch.Tensor:
        """See :class:`Samples`."""
        return values_S[:, None]

    def apart(self, values_BT: torch.Tensor, fill: float = 0.0) -> torch.Tensor:
        """See :class:`Samples`."""
        return values_BT

    def of_rows(self, values_B: torch.Tensor) -> torch.Tensor:
        """See :class:`Samples`."""
        return values_B

    def number(self, rows: int) -> int:
        """See :class:`Samples`."""
        return rows


class Documents:
    """A sample is a document of a packed row.

    Args:
        starts_BT: (B, T) True at the first token of each document and of each row. On the CPU, so that the host need
            not wait for their number.
        device: Where the batch is.
    """

    def __init__(self, starts_BT: torch.Tensor, device: torch.device | None = None) -> None:
        B, T = starts_BT.shape
        first_S = starts_BT.flatten().nonzero().squeeze(1)
        ends_S = F.pad(first_S[1:], (0, 1), value=B * T)
        lengths_S = ends_S - first_S
        offsets_L = torch.arange(int(lengths_S.max()), device=starts_BT.device)
        inside_SL = offsets_L < lengths_S[:, None]
        device = device or starts_BT.device
        self._inside_SL = inside_SL.to(device, non_blocking=True)
        self._rows_S = (first_S // T).to(device, non_blocking=True)
        self._places_SL = torch.where(inside_SL, first_S[:, None] + offsets_L, 0).to(device, non_blocking=True)
        self._sample_BT = (starts_BT.flatten().cumsum(0) - 1).view(B, T).to(device, non_blocking=True)

    def loss_sums(self, values_BT: torch.Tensor) -> torch.Tensor:
        """See :class:`Samples`."""
        return self.label_sums(F.pad(values_BT[:, :-1], (1, 0)))

    def label_sums(self, values_BT: torch.Tensor) -> torch.Tensor:
        """See :class:`Samples`."""
        return self.apart(values_BT).sum(dim=1)

    def at_losses(self, values_S: torch.Tensor) -> torch.Tensor:
        """See :class:`Samples`. The last position of a row predicts nothing and has the value of its own sample."""
        sample_BT = self._sample_BT.to(values_S.device)
        return values_S[torch.cat([sample_BT[:, 1:], sample_BT[:, -1:]], dim=1)]

    def apart(self, values_BT: torch.Tensor, fill: float = 0.0) -> torch.Tensor:
        """See :class:`Samples`."""
        places_SL = self._places_SL.to(values_BT.device)
        inside_SL = self._inside_SL.to(values_BT.device)
        found = values_BT.flatten(0, 1)[places_SL]
        return found.masked_fill(~inside_SL.view(*inside_SL.shape, *[1] * (found.ndim - 2)), fill)

    def of_rows(self, values_B: torch.Tensor) -> torch.Tensor:
        """See :class:`Samples`. Where a collator has put rows one after the other into one, a sample is such a row.

        Raises:
            ComponentError: There are neither as many values as rows, nor as many as documents.
        """
        if len(values_B) == len(self._rows_S):
            return values_B
        if len(values_B) != len(self._sample_BT):
            raise ComponentError(
                f"the data collator put {len(values_B)} rows with {len(self._rows_S)} documents into "
                f"{len(self._sample_BT)}, so nobody knows which document is of which row -> use a collator that pads, "
                "or rows that are not packed"
            )
        return values_B[self._rows_S.to(values_B.device)]

    def number(self, rows: int) -> int:
        """See :class:`Samples`."""
        return len(self._rows_S)


ROWS = Rows()
_PADDING = {"labels": -100}  # what stands where a sample has no token; 0 for the other keys


def samples_of(inputs: Mapping[str, Any]) -> Samples:
    """Returns what the samples of a micro-batch are: documents where (B, T) ``position_ids`` begin anew in a row."""
    return samples_of_step([inputs])[0]


def samples_of_step(batches: Sequence[Mapping[str, Any]]) -> list[Samples]:
    """Returns what the samples of each micro-batch are. Reads from the device once, and not at all without positions.

    Args:
        batches: The micro-batches of a step.
    """
    anew = [_anew(batch.get("position_ids")) for batch in batches]
    there = [found_BX for found_BX in anew if found_BX is not None]
    if not there:
        return [ROWS] * len(batches)
    read = iter(torch.split(torch.cat([found.flatten() for found in there]).cpu(), [found.numel() for found in there]))
    samples: list[Samples] = []
    for found_BX in anew:
        if found_BX is None:
            samples.append(ROWS)
            continue
        on_cpu_BX = next(read).view(found_BX.shape)
        starts_BT = F.pad(on_cpu_BX, (1, 0), value=True)
        samples.append(Documents(starts_BT, found_BX.device) if bool(on_cpu_BX.any()) else ROWS)
    return samples


def _anew(positions_BT: Any) -> torch.Tensor | None:
    """Returns where a document begins behind the first token of a row: (B, T - 1) bool; None without positions."""
    if not isinstance(positions_BT, torch.Tensor) or positions_BT.ndim != 2:
        return None
    before, after = positions_BT[:, :-1], positions_BT[:, 1:]
    return (after != before + 1) & ~((after == 0) & (before == 0))  # padding is a row of zeros, and one document


def one_by_one(inputs: Mapping[str, Any], samples: Samples) -> dict[str, Any]:
    """Returns the micro-batch with a sample in each row, (S, L); of packed rows only what has a value per token."""
    if samples is ROWS:
        return dict(inputs)
    shape = inputs["position_ids"].shape
    return {
        key: samples.apart(value, _PADDING.get(key, 0))
        for key, value in inputs.items()
        if isinstance(value, torch.Tensor) and value.shape == shape
    }
