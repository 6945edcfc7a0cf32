"""One vector per row from the hidden states of several layers, pooled by modality.

    u_v,l = mean over vision tokens, u_t,l = mean over text tokens of layer l, squashed by tanh     each of length 1
    x = [u_v,1, u_t,1, u_v,2, u_t,2, ...] / sqrt(number of blocks)           arXiv 2406.10995, equations 2 and 3

A model of text alone has the text blocks. A row without images has zeros in its vision blocks.

Cost: one forward pass without gradients over all tokens, without logits. Vectors are wide (10 blocks of 4,096 numbers
are 160 KB a row), so they are written into a file, a stretch of rows after the other: memory is that of a stretch
(:data:`STRETCH_BYTES`) and of a batch, whatever the number of rows.

Letters: N rows, B rows of the batch, T tokens, L layers, H width of the model, D numbers of a vector.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F  # the field's name for it
from numpy.typing import NDArray

from dataflex.core.errors import ComponentError
from dataflex.core.ranks.agreement import from_rank_0
from dataflex.model.autocast import autocast
from dataflex.model.hidden_states import LayerForward, hidden_states_of_layers
from dataflex.model.media_tokens import vision_mask, vision_token_ids
from dataflex.model.undisturbed import undisturbed
from dataflex.model.unwrapped import pretrained_models
from dataflex.scoring.embeddings import LENGTHS, require_finite_states, token_mask, with_lengths
from dataflex.scoring.passes.row_pass import Collator, RowBatch, RowPass, without_replicas
from dataflex.scoring.stage_rows import refuse_stage

if TYPE_CHECKING:
    from accelerate import Accelerator

STRETCH_BYTES = 2**28
"""Vectors that are in memory before they are written: 256 MB, on every rank less."""


def layer_embeddings(
    model: torch.nn.Module,
    dataset: Any,
    layers: Sequence[int],
    *,
    collator: Collator,
    accelerator: Accelerator | None = None,
    indices: NDArray[np.int64] | None = None,
    token_budget: int | None = None,
    squash_tokens: bool = False,
    desc: str = "embedding",
    progress: bool = True,
    folder: str | None = None,
) -> NDArray[np.float32]:
    """Returns the vector of each row on rank 0: (N, D) float32, in a file; (0, D) on the others. Collective.

    Args:
        model: A causal language model, wrapped as the engine needs it. ``labels`` are not passed to it.
        dataset: The tokenised dataset.
        layers: Which hidden states, from 0 (the embeddings) to L (after the final norm).
        collator: Makes a batch with ``input_ids`` (B, T) from a list of rows.
        accelerator: The run's accelerator, for ranks and mixed precision; None means a single process.
        indices: (N,) row numbers; None means all.
        token_budget: Most tokens of a batch, with padding; None takes :func:`~dataflex.scoring.default_token_budget`.
        squash_tokens: Whether tanh comes before the mean over tokens; otherwise after it.
        desc: What a progress bar or a log line begins with.
        progress: Whether rank 0 shows how far it is.
        folder: Where the file is made, which has no name and is gone with the array; None for memory.

    Raises:
        ComponentError: On every rank: vectors that are not finite; an encoder-decoder; a model without hidden states.
    """
    refuse_stage(collator, "hidden states")
    model = without_replicas(model)
    every = RowPass(dataset, with_lengths(collator), accelerator, indices, token_budget, None, desc, progress)
    rows, ids = every.rows(), vision_token_ids(model)
    step = max(1, STRETCH_BYTES // (4 * _width(model) * len(layers) * (2 if ids else 1)))
    is_main = accelerator is None or accelerator.process_index == 0
    found: NDArray[np.float32] | None = None
    with undisturbed(model), torch.no_grad(), hidden_states_of_layers(model, layers) as forward:
        score = _scorer(forward, accelerator, ids, squash_tokens)
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            values = replace(every, indices=part).values(model, score, everywhere=False)
            if accelerator is None:
                require_finite_states(values, part)
            else:  # rank 0 has them, and the others must not wait for it
                from_rank_0(accelerator, partial(require_finite_states, values, part))
            if found is None:
                found = _array((len(rows) if is_main else 0, values.shape[1]), folder)
            if is_main:
                found[start : start + len(part)] = values
    return np.empty((0, 0), dtype=np.float32) if found is None else found


def _width(model: torch.nn.Module) -> int:
    """Returns H as the configuration has it, which only says how many rows make a stretch."""
    configs = [base.config.get_text_config().to_dict() for base in pretrained_models(model)[:1]]
    return max([int(config.get("hidden_size") or 0) for config in configs] + [1])


def _array(shape: tuple[int, int], folder: str | None) -> NDArray[np.float32]:
    if folder is None or not shape[0]:
        return np.empty(shape, dtype=np.float32)
    size, reason = 4 * shape[0] * shape[1], "there is no room"
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(folder).free >= size:  # a map that outgrows the disk ends the process without a word
            with tempfile.TemporaryFile(dir=folder) as file:  # the map keeps its content
                return np.memmap(file, dtype=np.float32, mode="w+", shape=shape)
    except OSError as error:
        reason = str(error)
    raise ComponentError(
        f"cache_dir: no file of {size:,} bytes can be made in {folder} ({reason}) -> name a folder with room for the "
        "vectors of all rows, or fewer embedding_layers"
    )


def pool_layers(
    hidden_LBTH: Sequence[torch.Tensor], vision_BT: torch.Tensor | None, text_BT: torch.Tensor, squash_tokens: bool
) -> torch.Tensor:
    """Returns one vector for each row: (B, D) float32, D = L H or 2 L H; zeros in a block without tokens.

    Args:
        hidden_LBTH: (B, T, H) states of each layer.
        vision_BT: (B, T) True where a token stands for an image or a video; None where the model knows none.
        text_BT: (B, T) True where there is another token, not padding.
        squash_tokens: Whether tanh comes before the mean; otherwise after it.
    """
    masks = [text_BT] if vision_BT is None else [vision_BT, text_BT]
    blocks = []
    for hidden_BTH in hidden_LBTH:
        states_BTH = hidden_BTH.float()
        for mask_BT in masks:
            mask_BT = mask_BT.to(states_BTH.device)
            kept_BTH = states_BTH.masked_fill(~mask_BT.unsqueeze(-1), 0.0)  # padding may be infinite
            kept_BTH = kept_BTH.tanh() if squash_tokens else kept_BTH  # tanh(0) = 0
            mean_BH = kept_BTH.sum(dim=1) / mask_BT.sum(dim=1, keepdim=True).clamp(min=1)
            blocks.append(F.normalize(mean_BH if squash_tokens else mean_BH.tanh(), dim=1))
    return torch.cat(blocks, dim=1).div(len(blocks) ** 0.5)


def _scorer(
    forward: LayerForward, accelerator: Accelerator | None, ids: tuple[int, ...], squash_tokens: bool
) -> Callable[[RowBatch], torch.Tensor]:
    def score(batch: RowBatch) -> torch.Tensor:
        inputs = dict(batch.inputs)
        mask_BT = token_mask(inputs, inputs.pop(LENGTHS))
        vision_BT = vision_mask(inputs["input_ids"], ids).to(mask_BT.device) & mask_BT if ids else None
        with autocast(accelerator):
            hidden_LBTH = forward(inputs)
        return pool_layers(
            hidden_LBTH, vision_BT, mask_BT if vision_BT is None else mask_BT & ~vision_BT, squash_tokens
        )

    return score
