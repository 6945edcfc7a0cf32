"""What the training steps themselves show of losses: summed by source for a mixer, and row by row for who keeps them.

The token losses of a step are there anyway. Where the loss was replaced they are at hand; else they cost one more
log-softmax over the logits, and no forward. Micro-batches leave two numbers per row on the device; they are added up on
the host when the optimizer step is done, and over ranks by one collective of 2K numbers. Neither the loss nor a random
state is touched: a run that is watched is, bit for bit, the run that is not.

Letters: B rows of a micro-batch, S its samples, T tokens, V vocabulary, K sources.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F  # the field's name for it
from numpy.typing import NDArray

from dataflex.core.errors import ConfigError
from dataflex.core.ranks.by_row import sum_over_ranks
from dataflex.model.cross_entropy import token_losses
from dataflex.model.label_logits import IGNORED
from dataflex.objective.samples import ROWS, Samples

if TYPE_CHECKING:
    from accelerate import Accelerator

TokenValues = Callable[..., torch.Tensor]
"""``values(inputs, losses_BT) -> (B, T)``, or of ``(inputs, losses_BT, logits_BTV)``: what is summed in place of the
losses."""


class SourceLosses:
    """The sums of one optimizer step, source by source.

    Args:
        sources: K, the number of sources.
        values: Turns the token losses of a micro-batch into what is summed.

    Attributes:
        loss_sums: (K,) the sums of the losses themselves of the last step, over all ranks.
    """

    def __init__(self, sources: int, values: TokenValues) -> None:
        self._sources = sources
        self._values = values
        self._parts: list[torch.Tensor] = []  # (4, B) sums, tokens, sums of losses, sources
        self.loss_sums: NDArray[np.float64] = np.zeros(sources)

    @torch.no_grad()
    def add(
        self,
        losses_BT: torch.Tensor,
        targets_BT: torch.Tensor,
        sources_B: torch.Tensor,
        inputs: Mapping[str, Any],
        logits_BTV: torch.Tensor | None = None,
    ) -> None:
        """Adds a micro-batch.

        Args:
            losses_BT: (B, T) cross entropies at the position before each label, 0 where there is none.
            targets_BT: (B, T) the token to predict at each position, -100 for none.
            sources_B: (B,) the number of each row's source.
            inputs: The batch as the model got it, with its labels.
            logits_BTV: What the loss came from, where the values are of them.
        """
        mask_BT = targets_BT != IGNORED
        values_BT = self._values(inputs, losses_BT, *(() if logits_BTV is None else (logits_BTV,)))
        sums_B = values_BT.masked_fill(~mask_BT, 0.0).sum(dim=1)
        if sums_B.dtype not in (torch.float32, torch.float64):
            sums_B = sums_B.float()  # which holds the number of each source, too
        plain_B = sums_B if values_BT is losses_BT else losses_BT.masked_fill(~mask_BT, 0.0).sum(dim=1).to(sums_B)
        self._parts.append(torch.stack([sums_B, mask_BT.sum(dim=1).to(sums_B), plain_B, sources_B.to(sums_B)]))

    def total(self, accelerator: Accelerator) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Returns the step's (K,) means, NaN for a source without tokens, and (K,) tokens; starts a new step.

        Collective: every rank calls it and gets the same.
        """
        sums_3K: NDArray[np.float64] = np.zeros((3, self._sources))
        if self._parts:
            parts_4X = torch.cat(self._parts, dim=1).cpu().numpy()  # waits once
            np.add.at(sums_3K.T, parts_4X[3].astype(np.int64), parts_4X[:3].T.astype(np.float64))
        self._parts.clear()
        sums_3K = sum_over_ranks(sums_3K, accelerator)
        tokens_K = np.rint(sums_3K[1]).astype(np.int64)
        means_K = np.full(self._sources, np.nan)
        np.divide(sums_3K[0], sums_3K[1], out=means_K, where=tokens_K > 0)
        self.loss_sums = sums_3K[2]
        return means_K, tokens_K


class SourceTotals:
    """The losses of the sources over several steps, for a line of the record. The same on every rank.

    Args:
        sources: K, the number of sources.

    Attributes:
        first: The global step at which the line that is collected for begins; None where nothing was collected.
    """

    def __init__(self, sources: int) -> None:
        self._sources = sources
        self.forget()

    def forget(self) -> None:
        """Begins anew."""
        self._sums_2K: NDArray[np.float64] = np.zeros((2, self._sources))
        self.first: int | None = None

    def add(self, losses_K: NDArray[np.float64], tokens_K: NDArray[np.int64], step: int) -> None:
        """Adds a step.

        Args:
            losses_K: (K,) sums of the losses of its tokens.
            tokens_K: (K,) how many these are.
            step: Global optimizer steps done before it.
        """
        self.first = step if self.first is None else self.first
        self._sums_2K += np.stack([losses_K, tokens_K])

    def taken(self, names: Sequence[str], done: int) -> tuple[int, dict[str, dict[str, Any]]]:
        """Returns how many steps there were, and source -> mean ``loss`` and ``tokens``; and forgets them.

        Args:
            names: (K) the sources.
            done: Global optimizer steps done.
        """
        steps, sums_2K = 0 if self.first is None else done - self.first, self._sums_2K
        self.forget()
        found = zip(names, *sums_2K.tolist(), strict=True)
        return steps, {name: {"loss": loss / tokens, "tokens": int(tokens)} for name, loss, tokens in found if tokens}

    def state_dict(self) -> dict[str, Any]:
        """Returns what was collected."""
        return {"sums": self._sums_2K, "first": self.first}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned."""
        self._sums_2K, self.first = np.array(state["sums"], dtype=np.float64), state["first"]


@torch.no_grad()
def row_means(
    losses_BT: torch.Tensor, targets_BT: torch.Tensor, rows: torch.Tensor, samples: Samples = ROWS
) -> torch.Tensor:
    """Returns the mean token loss of each row: (B,) float32, NaN for a row without a label to predict.

    Args:
        losses_BT: (B, T) cross entropies at the position before each label, 0 where there is none.
        targets_BT: (B, T) the token to predict at each position, -100 for none.
        rows: (B,) row numbers; or (S,), where the rows of the batch are documents in one. Documents of one row then get
            the mean of that row.
        samples: The documents, in that case.
    """
    there_BT = targets_BT != IGNORED
    if len(rows) == len(losses_BT):
        return losses_BT.sum(dim=1) / there_BT.sum(dim=1)
    same_SS = (rows[:, None] == rows[None, :]).to(losses_BT)
    sums_S = same_SS @ samples.loss_sums(losses_BT)
    return sums_S / (same_SS @ samples.loss_sums(there_BT).to(losses_BT))


def losses_of_logits(logits_BTV: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
    """Returns (B, T) float32 cross entropies at the position before each label, 0 where there is none."""
    with torch.no_grad():
        return token_losses(logits_BTV.flatten(0, 1), targets_BT.flatten()).view(targets_BT.shape)


def require_rows(logits_BTV: Any, labels_BT: torch.Tensor | None, rows: int | None, who: str) -> torch.Tensor:
    """Returns the (B, T) token to predict at each position, -100 for none.

    Args:
        logits_BTV: What the step's loss came from.
        labels_BT: The labels of the batch.
        rows: B, where the batch must have a row for each that was planned; None where rows may be documents in one.
        who: What looks at the losses, in words.

    Raises:
        ConfigError: The batch cannot be split into rows.
    """
    if not isinstance(logits_BTV, torch.Tensor) or logits_BTV.ndim != 3:
        raise ConfigError(
            f"{who}, but the model returns no logits in training -> switch off what computes the loss without them "
            "(enable_liger_kernel), or use a component that does not look at losses"
        )
    if labels_BT is None or labels_BT.shape != logits_BTV.shape[:2] or rows not in (None, len(labels_BT)):
        found = "no labels" if labels_BT is None else f"labels of shape {tuple(labels_BT.shape)}"
        raise ConfigError(
            f"{who}, but the collator made {found} and logits of shape {tuple(logits_BTV.shape)} of {rows} rows -> use "
            "a collator that makes one row of each, or a component that does not look at losses"
        )
    return F.pad(labels_BT.to(logits_BTV.device)[:, 1:], (0, 1), value=IGNORED)
