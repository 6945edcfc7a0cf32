"""The loss of every row of a dataset under the present model.

Cost: one forward pass without gradients over all tokens, with logits at label positions only. Memory: one batch, and 4
bytes per row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from dataflex.core.errors import ComponentError
from dataflex.model.autocast import autocast
from dataflex.model.cross_entropy import sample_means
from dataflex.model.label_logits import label_positions
from dataflex.model.label_losses import LabelLosses, losses_at_labels
from dataflex.model.undisturbed import undisturbed
from dataflex.scoring.passes.row_pass import Collator, RowBatch, RowPass, without_replicas
from dataflex.scoring.passes.score_store import ScoreStore
from dataflex.scoring.stage_rows import StageCollator

if TYPE_CHECKING:
    from accelerate import Accelerator


def per_sample_losses(
    model: torch.nn.Module,
    dataset: Any,
    *,
    collator: Collator,
    accelerator: Accelerator | None = None,
    indices: Sequence[int] | NDArray[np.int64] | None = None,
    token_budget: int | None = None,
    desc: str = "scoring",
    progress: bool = True,
    store: ScoreStore | None = None,
    chunked: bool | None = None,
) -> NDArray[np.float32]:
    """Returns the loss of each row: (N,) float32, the same on every rank.

    Of a text it is the mean token loss. Of a pair or a tagged answer it is what the stage's trainer computes of the row
    alone, where ``collator`` carries it (:class:`~dataflex.scoring.stage_rows.StageCollator`).

    Token losses are taken where the labels are not -100, after the causal shift; a row without such a label has no
    loss and gets NaN. The model runs in eval mode and nothing of the run is disturbed (see
    :func:`~dataflex.scoring.undisturbed`). Collective: every rank calls it with the same arguments.

    Args:
        model: A causal language model, wrapped as the engine needs it. ``labels`` are not passed to it.
        dataset: The tokenised dataset; a row is a mapping with ``input_ids`` and what ``collator`` needs.
        collator: Makes a batch with ``input_ids`` and ``labels``, both (B, T), from a list of rows; or that of a stage.
        accelerator: The run's accelerator, for ranks and mixed precision; None means a single process.
        indices: Row numbers to score, in the order of the result; None means all.
        token_budget: Most tokens of a batch, with padding; None takes :func:`~dataflex.scoring.default_token_budget`.
            It is halved when the GPU runs out of memory.
        desc: What a progress bar or a log line begins with.
        progress: Whether rank 0 shows how far it is with its own share of the rows.
        store: Where losses are kept while the pass runs, so that an interrupted one goes on; None for nowhere.
        chunked: Whether the logits of a batch are never held together; None: from a vocabulary of 8,192 on.

    Raises:
        ComponentError: On every rank: losses that are not finite; an encoder-decoder. On one rank: not even one row
            fits into memory, or a batch does not under a sharded engine.
    """
    model = without_replicas(model)
    rows = RowPass(dataset, collator, accelerator, indices, token_budget, None, desc, progress, store)
    if isinstance(collator, StageCollator):
        with undisturbed(model), torch.no_grad():
            found = rows.values(model, _stage_scorer(collator, model, accelerator))
        _require_finite(found, rows.rows())
        return found
    with (
        undisturbed(model),
        torch.no_grad(),  # not inference_mode: tensors that FSDP keeps from this forward must stay usable afterwards
        losses_at_labels(model, chunked) as forward,
    ):
        found = rows.values(model, _scorer(forward, accelerator))
    _require_finite(found, rows.rows())
    return found


def _stage_scorer(
    collator: StageCollator, model: torch.nn.Module, accelerator: Accelerator | None
) -> Callable[[RowBatch], torch.Tensor]:
    """Returns the function from a batch to the (B,) losses of a stage: infinite where not finite."""

    def score(batch: RowBatch) -> torch.Tensor:
        with autocast(accelerator):
            losses_B = collator.losses(model, batch.inputs).detach().float()
        return losses_B.masked_fill(~losses_B.isfinite(), torch.inf)

    return score


def _scorer(forward: LabelLosses, accelerator: Accelerator | None) -> Callable[[RowBatch], torch.Tensor]:
    """Returns the function from a batch to (B,) losses: NaN without labels, infinite where not finite."""

    def score(batch: RowBatch) -> torch.Tensor:
        labels_BT = batch.labels()
        positions_M, targets_M = label_positions(labels_BT)  # still on the CPU: the GPU need not wait for their number
        with autocast(accelerator):
            losses_M = forward(batch.inputs, positions_M, targets_M, labels_BT.shape)
        losses_B = sample_means(losses_M, positions_M.to(losses_M.device), labels_BT.shape)
        labelled_B = torch.zeros(len(labels_BT), dtype=torch.bool)
        labelled_B[positions_M // labels_BT.shape[1]] = True
        bad_B = ~losses_B.isfinite() & labelled_B.to(losses_B.device)
        return losses_B.masked_fill(bad_B, torch.inf)

    return score


def _require_finite(losses: NDArray[np.float32], chosen: NDArray[np.int64]) -> None:
    bad = np.flatnonzero(np.isinf(losses))
    if len(bad):
        raise ComponentError(
            f"the model's loss is NaN or infinite for {len(bad)} of {len(losses)} rows, first for row {chosen[bad[0]]} "
            "-> the weights have probably diverged: lower the learning rate, or train in bf16 instead of fp16"
        )
