"""The loss of every row of a dataset under the present model: batched, length-sorted, shared out over the ranks.

Cost: one forward pass without gradients over all tokens, with logits at label positions only. Memory: one batch, and 4
bytes per row.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import DistributedType
from accelerate.utils import send_to_device
from numpy.typing import NDArray
from torch.nn.parallel import DataParallel, DistributedDataParallel
from transformers.utils import logging as hf_logging

from dataflex.core.errors import ComponentError
from dataflex.data.rows import fetch
from dataflex.scoring.batches import Batch, plan_batches, shard_batches
from dataflex.scoring.budget import agreed_budget, default_token_budget
from dataflex.scoring.cross_entropy import sample_means, token_losses
from dataflex.scoring.gather import gather_by_row
from dataflex.scoring.label_logits import Forward, label_positions, logits_at_labels
from dataflex.scoring.lengths import row_lengths
from dataflex.scoring.session import undisturbed
from dataflex.utils.logging import logger

if TYPE_CHECKING:
    from accelerate import Accelerator

Collator = Callable[[list[Any]], Mapping[str, torch.Tensor]]

# In these engines a forward is a collective call, so a rank cannot make one more than the others.
_SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)


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
) -> NDArray[np.float32]:
    """Returns the mean token loss of each row: (N,) float32, the same on every rank.

    Token losses are taken where the labels are not -100, after the causal shift; a row without such a label has no
    loss and gets NaN. The model runs in eval mode and nothing of the run is disturbed (see
    :func:`~dataflex.scoring.undisturbed`). Collective: every rank calls it with the same arguments.

    Args:
        model: A causal language model, wrapped as the engine needs it. ``labels`` are not passed to it.
        dataset: The tokenised dataset; a row is a mapping with ``input_ids`` and what ``collator`` needs.
        collator: Makes a batch with ``input_ids`` and ``labels``, both (B, T), from a list of rows.
        accelerator: The run's accelerator, for ranks and mixed precision; None means a single process.
        indices: Row numbers to score, in the order of the result; None means all.
        token_budget: Most tokens of a batch, with padding; None takes :func:`~dataflex.scoring.default_token_budget`.
            It is halved when the GPU runs out of memory.
        desc: What the progress bar says.
        progress: Whether rank 0 shows a progress bar of its own share of the rows.

    Raises:
        ComponentError: On every rank: losses that are not finite; an encoder-decoder. On one rank: not even one row
            fits into memory, or a batch does not under a sharded engine.
    """
    rank, world_size = (0, 1) if accelerator is None else (accelerator.process_index, accelerator.num_processes)
    every = np.arange(len(dataset), dtype=np.int64)
    chosen = every if indices is None else every[np.asarray(indices, dtype=np.int64)]
    budget = agreed_budget(token_budget or default_token_budget(model), accelerator)
    lengths = row_lengths(dataset)[chosen]
    batches = shard_batches(plan_batches(lengths, budget), rank, world_size)
    if isinstance(model, DataParallel | DistributedDataParallel):
        model = model.module  # replicas need no collective calls to score

    places: list[NDArray[np.int64]] = [np.empty(0, dtype=np.int64)]
    losses: list[torch.Tensor] = [torch.empty(0)]
    total = sum(len(batch.rows) for batch in batches)
    hidden = not progress or rank != 0
    with (
        undisturbed(model),
        torch.no_grad(),  # not inference_mode: tensors that FSDP keeps from this forward must stay usable afterwards
        logits_at_labels(model) as forward,
        hf_logging.tqdm(desc=desc, total=total, unit="row", disable=True if hidden else None) as bar,
    ):
        score = _scorer(forward, dataset, chosen, collator, accelerator, next(model.parameters()).device)
        for batch, losses_B in _within_memory(score, batches, lengths, splittable=not _is_sharded(accelerator)):
            if not batch.repeated:
                places.append(batch.rows)
                losses.append(losses_B)
            bar.update(len(batch.rows))
    losses = [part.to(losses[-1].device) for part in losses]
    found = gather_by_row(np.concatenate(places), torch.cat(losses), len(chosen), accelerator)
    _require_finite(found, chosen)
    return found


def _scorer(
    forward: Forward,
    dataset: Any,
    chosen: NDArray[np.int64],
    collator: Collator,
    accelerator: Accelerator | None,
    device: torch.device,
) -> Callable[[NDArray[np.int64]], torch.Tensor]:
    """Returns the function from places in ``chosen`` to (B,) losses: NaN without labels, infinite where not finite."""
    if accelerator is not None:
        device = accelerator.device  # weights that are offloaded lie elsewhere between two forwards

    def score(places: NDArray[np.int64]) -> torch.Tensor:
        # Collators change the rows they are given (LLaMA-Factory's pops keys); a dataset in memory hands out its own.
        batch = dict(collator([dict(row) for row in fetch(dataset, chosen[places])]))
        labels_BT = batch.pop("labels", None)
        if labels_BT is None or labels_BT.ndim != 2:
            raise ComponentError(
                "the data collator gives no labels per token, so rows have no loss -> use one that returns 'labels' "
                "of shape (rows, tokens), or a strategy that does not score the model"
            )
        positions_M, targets_M = label_positions(labels_BT)  # still on the CPU: the GPU need not wait for their number
        inputs = send_to_device(batch, device)
        if accelerator is None:
            logits_MV = forward(inputs, positions_M.to(device), labels_BT.shape)
        else:
            with accelerator.autocast():
                logits_MV = forward(inputs, positions_M.to(device), labels_BT.shape)
        losses_M = token_losses(logits_MV, targets_M.to(logits_MV.device))
        losses_B = sample_means(losses_M, positions_M.to(losses_M.device), labels_BT.shape)
        labelled_B = torch.zeros(len(labels_BT), dtype=torch.bool)
        labelled_B[positions_M // labels_BT.shape[1]] = True
        bad_B = ~losses_B.isfinite() & labelled_B.to(losses_B.device)
        return losses_B.masked_fill(bad_B, torch.inf)

    return score


def _within_memory(
    score: Callable[[NDArray[np.int64]], torch.Tensor],
    batches: list[Batch],
    lengths: NDArray[np.int64],
    splittable: bool,
) -> Iterator[tuple[Batch, torch.Tensor]]:
    """Yields each batch with its losses; one that does not fit into GPU memory is halved, and so are those after it."""
    limit = np.inf
    pending = deque(batches)
    while pending:
        batch = pending.popleft()
        tokens = len(batch.rows) * int(lengths[batch.rows].max())
        if tokens > limit and len(batch.rows) > 1:
            middle = len(batch.rows) // 2
            pending.extendleft(Batch(part, batch.repeated) for part in (batch.rows[middle:], batch.rows[:middle]))
            continue
        try:
            losses_B = score(batch.rows)
        except torch.OutOfMemoryError as error:
            if len(batch.rows) == 1 or not splittable:
                raise ComponentError(
                    f"out of memory while scoring {len(batch.rows)} rows of {tokens // len(batch.rows)} tokens -> "
                    "set a smaller token_budget, or cut the rows shorter (cutoff_len)"
                ) from error
            losses_B = None
        if losses_B is None:  # out of the except block, whose traceback kept the tensors alive
            torch.cuda.empty_cache()
            limit = tokens // 2
            pending.appendleft(batch)
            logger.warning("out of memory while scoring %d tokens at once; going on with at most %d", tokens, limit)
        else:
            yield batch, losses_B


def _is_sharded(accelerator: Accelerator | None) -> bool:
    return accelerator is not None and accelerator.num_processes > 1 and accelerator.distributed_type in _SHARDED


def _require_finite(losses: NDArray[np.float32], chosen: NDArray[np.int64]) -> None:
    bad = np.flatnonzero(np.isinf(losses))
    if len(bad):
        raise ComponentError(
            f"the model's loss is NaN or infinite for {len(bad)} of {len(losses)} rows, first for row {chosen[bad[0]]} "
            "-> the weights have probably diverged: lower the learning rate, or train in bf16 instead of fp16"
        )
