"""One vector per row from the model's own last hidden states.

Cost: one forward pass without gradients over all tokens, without logits. Memory: one batch, and 4 H bytes per row on
the CPU of every rank that asks for them (1.6 GB for 100,000 rows of a model of width 4096); a device holds a part.

Letters: N rows, B rows of the batch, T tokens, H width of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F  # the field's name for it
from numpy.typing import NDArray

from dataflex.core.errors import ComponentError
from dataflex.core.ranks.agreement import from_rank_0
from dataflex.model.autocast import autocast
from dataflex.model.hidden_states import Forward, last_hidden_states
from dataflex.model.label_logits import IGNORED
from dataflex.model.undisturbed import undisturbed
from dataflex.scoring.passes.row_pass import Collator, RowBatch, RowPass, without_replicas
from dataflex.scoring.passes.score_store import ScoreStore
from dataflex.scoring.stage_rows import refuse_stage

if TYPE_CHECKING:
    from accelerate import Accelerator

Pooling = Literal["mean", "last", "weighted"]
POOLINGS: tuple[Pooling, ...] = ("mean", "last", "weighted")

LENGTHS = "dataflex_row_lengths"
"""What :func:`with_lengths` puts into a batch: (B,) tokens of each row."""


def hidden_state_embeddings(
    model: torch.nn.Module,
    dataset: Any,
    *,
    collator: Collator,
    accelerator: Accelerator | None = None,
    indices: Sequence[int] | NDArray[np.int64] | None = None,
    token_budget: int | None = None,
    pooling: Pooling = "mean",
    desc: str = "embedding",
    progress: bool = True,
    store: ScoreStore | None = None,
    everywhere: bool = True,
    of_answers: bool = False,
    normalise: bool = True,
) -> NDArray[np.float32]:
    """Returns the embedding of each row: (N, H) float32 of length 1, the same on every rank; (0, 0) for no rows.

    The model runs in eval mode and nothing of the run is disturbed (see :func:`~dataflex.scoring.undisturbed`).
    Collective: every rank calls it with the same arguments.

    Args:
        model: A causal language model, wrapped as the engine needs it. ``labels`` are not passed to it.
        dataset: The tokenised dataset; a row is a mapping with ``input_ids`` and what ``collator`` needs.
        collator: Makes a batch with ``input_ids`` (B, T) from a list of rows. Where it gives no ``attention_mask`` of
            that shape, rows are taken to be padded on the right.
        accelerator: The run's accelerator, for ranks and mixed precision; None means a single process.
        indices: Row numbers to embed, in the order of the result; None means all.
        token_budget: Most tokens of a batch, with padding; None takes :func:`~dataflex.scoring.default_token_budget`.
            It is halved when the GPU runs out of memory.
        pooling: How tokens become one vector, see :func:`pool`.
        desc: What a progress bar or a log line begins with.
        progress: Whether rank 0 shows how far it is with its own share of the rows.
        store: Where embeddings are kept while the pass runs, so that an interrupted one goes on; None for nowhere.
        everywhere: Whether every rank gets them; otherwise rank 0 alone does, and the others (0, H).
        of_answers: Whether only tokens with a label are pooled, where a row has any.
        normalise: Whether embeddings have length 1; otherwise they are the pooled states themselves.

    Raises:
        ComponentError: On every rank: embeddings that are not finite; an encoder-decoder or a model that gives no
            hidden states. On one rank: not even one row fits into memory, or a batch does not under a sharded engine.
    """
    refuse_stage(collator, "hidden states")
    model = without_replicas(model)
    counting = with_lengths(collator)
    rows = RowPass(dataset, counting, accelerator, indices, token_budget, None, desc, progress, store)
    with (
        undisturbed(model),
        torch.no_grad(),  # not inference_mode: tensors that FSDP keeps from this forward must stay usable afterwards
        last_hidden_states(model) as forward,
    ):
        found = rows.values(model, _scorer(forward, accelerator, pooling, of_answers, normalise), everywhere=everywhere)
    chosen = rows.rows()
    if not len(chosen):
        return found.reshape(0, 0)
    if everywhere or accelerator is None:
        require_finite_states(found, chosen)
    else:  # rank 0 has them, and the others must not wait for it
        from_rank_0(accelerator, lambda: require_finite_states(found, chosen))
    return found


def require_finite_states(found_NH: NDArray[np.float32], chosen_N: NDArray[np.int64]) -> None:
    """Refuses vectors that are not finite.

    Args:
        found_NH: (N, H) vectors.
        chosen_N: (N,) the rows that they belong to.

    Raises:
        ComponentError: A number is NaN or infinite.
    """
    bad = np.flatnonzero(~np.isfinite(found_NH).all(axis=1))
    if len(bad):
        raise ComponentError(
            f"the model's hidden states are NaN or infinite for {len(bad)} of {len(found_NH)} rows, first for row "
            f"{chosen_N[bad[0]]} -> the weights have probably diverged: lower the learning rate, or train in bf16 "
            "instead of fp16"
        )


def pool(hidden_BTH: torch.Tensor, mask_BT: torch.Tensor, pooling: Pooling, normalise: bool = True) -> torch.Tensor:
    """Returns one vector for each row, of length 1 unless asked otherwise: (B, H) float32; zeros without tokens.

    Args:
        hidden_BTH: (B, T, H) last hidden states.
        mask_BT: (B, T) True where there is a token, not padding.
        pooling: ``mean`` of the tokens; ``last`` token, the only one that has seen all others; ``weighted`` mean in
            which the t-th token counts t times, as later tokens have seen more (SGPT, Muennighoff 2022, section 3.1).
        normalise: Whether each is scaled to length 1.
    """
    number_BT = mask_BT.long().cumsum(dim=1) * mask_BT  # 1 for the first token, wherever padding stands
    match pooling:
        case "mean":
            weight_BT = mask_BT.float()
        case "last":
            weight_BT = (mask_BT & (number_BT == number_BT.max(dim=1, keepdim=True).values)).float()
        case "weighted":
            weight_BT = number_BT.float()
    # Padding is left out by a choice, not by a weight of 0: what a model computes there may be infinite.
    hidden_BTH = hidden_BTH.float().masked_fill(~mask_BT.unsqueeze(-1), 0.0)
    pooled_BH = (weight_BT / weight_BT.sum(dim=1, keepdim=True).clamp(min=1)).unsqueeze(1).bmm(hidden_BTH)[:, 0]
    return F.normalize(pooled_BH) if normalise else pooled_BH


def answers_in(mask_BT: torch.Tensor, labels_BT: torch.Tensor | None) -> torch.Tensor:
    """Returns where there are tokens with a label: (B, T) bool; all tokens of a row that has none.

    Args:
        mask_BT: (B, T) where there is a token.
        labels_BT: (B, T) labels before the shift; None where the batch has none.
    """
    if labels_BT is None or labels_BT.shape != mask_BT.shape:
        return mask_BT
    labelled_BT = (labels_BT.to(mask_BT.device) != IGNORED) & mask_BT
    return torch.where(labelled_BT.any(dim=1, keepdim=True), labelled_BT, mask_BT)


def _scorer(
    forward: Forward, accelerator: Accelerator | None, pooling: Pooling, of_answers: bool, normalise: bool
) -> Callable[[RowBatch], torch.Tensor]:
    """Returns the function from a batch to its (B, H) embeddings."""

    def score(batch: RowBatch) -> torch.Tensor:
        inputs = dict(batch.inputs)
        lengths_B = inputs.pop(LENGTHS)
        mask_BT = token_mask(inputs, lengths_B)
        if of_answers:
            mask_BT = answers_in(mask_BT, batch.token_labels)
        with autocast(accelerator):
            hidden_BTH = forward(inputs)
        return pool(hidden_BTH, mask_BT.to(hidden_BTH.device), pooling, normalise)

    return score


def token_mask(inputs: Mapping[str, torch.Tensor], lengths_B: torch.Tensor) -> torch.Tensor:
    """Returns where a batch has tokens: (B, T) bool.

    From ``attention_mask`` where it has the shape of the tokens, of any numbers (packed rows are numbered in it);
    otherwise, as for a mask between pairs of tokens, from the rows' lengths.
    """
    shape = inputs["input_ids"].shape
    mask = inputs.get("attention_mask")
    if mask is not None and mask.shape == shape:
        return mask != 0
    return torch.arange(shape[1], device=lengths_B.device) < lengths_B.unsqueeze(1)


def with_lengths(collator: Collator) -> Collator:
    """Returns a collator that adds the tokens of each row to what ``collator`` makes, as :data:`LENGTHS`."""

    def collate(rows: list[Any]) -> Mapping[str, torch.Tensor]:
        lengths = [len(row["input_ids"]) for row in rows]  # before the collator, which may change the rows
        return {**collator(rows), LENGTHS: torch.tensor(lengths)}

    return collate
