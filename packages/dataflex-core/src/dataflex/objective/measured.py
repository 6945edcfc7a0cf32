"""What each source costs in training: the token losses of the training steps themselves, summed by source.

The logits of a step are there anyway, so this costs one more log-softmax over them and no forward. Micro-batches leave
two numbers per row on the device; they are added up on the host when the optimizer step is done, and over ranks by one
collective of 2K numbers. Neither the loss nor a random state is touched: a run that is watched is, bit for bit, the run
that is not.

Letters: B rows of a micro-batch, T tokens, V vocabulary, K sources.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F  # the field's name for it
from numpy.typing import NDArray

from dataflex.core.errors import ConfigError
from dataflex.scoring.cross_entropy import token_losses
from dataflex.scoring.gather import sum_over_ranks
from dataflex.scoring.label_logits import IGNORED

if TYPE_CHECKING:
    from accelerate import Accelerator

TokenValues = Callable[[Mapping[str, Any], torch.Tensor], torch.Tensor]
"""``values(inputs, losses_BT) -> (B, T)``: what is summed in place of the losses."""


class DomainLosses:
    """The sums of one optimizer step, source by source.

    Args:
        domains: K, the number of sources.
        values: Turns the token losses of a micro-batch into what is summed.
    """

    def __init__(self, domains: int, values: TokenValues) -> None:
        self._domains = domains
        self._values = values
        self._handed_out: deque[NDArray[np.int64]] = deque()
        self._now: NDArray[np.int64] | None = None
        self._parts: list[tuple[NDArray[np.int64], torch.Tensor]] = []

    def expect(self, domains_B: NDArray[np.int64]) -> None:
        """Notes the sources of a batch's rows when the loop takes it; the loop trains on batches in this order."""
        self._handed_out.append(domains_B)

    def begin(self) -> None:
        """A micro-batch is trained on from here: the next one that was handed out."""
        self._now = self._handed_out.popleft()

    def end(self) -> None:
        """The micro-batch is over."""
        self._now = None

    @property
    def domains(self) -> NDArray[np.int64] | None:
        """(B,) sources of the rows that are being trained on; None between two micro-batches."""
        return self._now

    @property
    def handed_out(self) -> Sequence[NDArray[np.int64]]:
        """The sources of the batches that were handed out and not yet trained on, in their order."""
        return tuple(self._handed_out)

    @torch.no_grad()
    def add(self, logits_BTV: torch.Tensor | None, inputs: Mapping[str, Any]) -> None:
        """Adds a micro-batch.

        Args:
            logits_BTV: The logits that the step's loss came from.
            inputs: The batch as the model got it, with its labels.

        Raises:
            ConfigError: There are no logits, no labels per token, or not one row for each that was planned.
        """
        domains_B = self._now
        assert domains_B is not None
        targets_BT = require_rows(logits_BTV, inputs.get("labels"), len(domains_B))
        assert logits_BTV is not None
        losses_BT = token_losses(logits_BTV.flatten(0, 1), targets_BT.flatten()).view(targets_BT.shape)
        self._add(losses_BT, targets_BT, domains_B, inputs)

    @torch.no_grad()
    def add_losses(self, losses_BT: torch.Tensor, inputs: Mapping[str, Any]) -> None:
        """As :meth:`add`, where the step's loss came from token losses and there are no logits.

        Args:
            losses_BT: (B, T) cross entropies at the position before each label, 0 where there is none.
            inputs: The batch as the model got it, with its labels.
        """
        domains_B = self._now
        assert domains_B is not None
        targets_BT = require_rows(losses_BT[..., None], inputs.get("labels"), len(domains_B))
        self._add(losses_BT.float(), targets_BT, domains_B, inputs)

    def _add(
        self,
        losses_BT: torch.Tensor,
        targets_BT: torch.Tensor,
        domains_B: NDArray[np.int64],
        inputs: Mapping[str, Any],
    ) -> None:
        mask_BT = targets_BT != IGNORED
        sums_B = self._values(inputs, losses_BT).masked_fill(~mask_BT, 0.0).sum(dim=1)
        self._parts.append((domains_B, torch.stack([sums_B, mask_BT.sum(dim=1).to(sums_B.dtype)])))

    def total(self, accelerator: Accelerator) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Returns the step's (K,) means, NaN for a source without tokens, and (K,) tokens; starts a new step.

        Collective: every rank calls it and gets the same.
        """
        sums_2K: NDArray[np.float64] = np.zeros((2, self._domains))
        if self._parts:
            domains_X = np.concatenate([domains_B for domains_B, _ in self._parts])
            parts_2X = torch.cat([part for _, part in self._parts], dim=1).cpu().numpy()  # waits once
            np.add.at(sums_2K.T, domains_X, parts_2X.T.astype(np.float64))
        self._parts.clear()
        sums_2K = sum_over_ranks(sums_2K, accelerator)
        tokens_K = np.rint(sums_2K[1]).astype(np.int64)
        means_K = np.full(self._domains, np.nan)
        np.divide(sums_2K[0], sums_2K[1], out=means_K, where=tokens_K > 0)
        return means_K, tokens_K


def require_rows(logits_BTV: torch.Tensor | None, labels_BT: torch.Tensor | None, rows: int) -> torch.Tensor:
    """Returns the (B, T) token to predict at each position, -100 for none.

    Raises:
        ConfigError: The batch cannot be split into rows.
    """
    if not isinstance(logits_BTV, torch.Tensor) or logits_BTV.ndim != 3:
        raise ConfigError(
            "the mixer follows the loss of each source, but the model returns no logits in training -> switch off "
            "what computes the loss without them (enable_liger_kernel), or use a mixer that does not look at losses"
        )
    if labels_BT is None or labels_BT.shape != logits_BTV.shape[:2] or len(labels_BT) != rows:
        found = "no labels" if labels_BT is None else f"labels of shape {tuple(labels_BT.shape)}"
        raise ConfigError(
            f"the mixer follows the loss of each source, but the collator made {found} and logits of shape "
            f"{tuple(logits_BTV.shape)} of {rows} rows -> use a collator that makes one row of each, or a mixer that "
            "does not look at losses"
        )
    return F.pad(labels_BT.to(logits_BTV.device)[:, 1:], (0, 1), value=IGNORED)


def rows_of_rank(rows: NDArray[np.int64], batch_size: int, rank: int, world_size: int) -> Iterator[NDArray[np.int64]]:
    """Yields the (B,) rows of each batch of a rank: batches go to the ranks in turn, as accelerate deals them.

    Args:
        rows: The rows of a segment, or what is left of it; whole steps.
        batch_size: B.
        rank: This rank.
        world_size: Number of ranks.
    """
    for start in range(rank * batch_size, len(rows), world_size * batch_size):
        yield rows[start : start + batch_size]
