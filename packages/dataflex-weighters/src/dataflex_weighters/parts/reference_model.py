"""The reference model of a weighter: loaded whole, frozen, and held against the tokens of the run.

Letters: B rows of a micro-batch, T tokens, M labels that are predicted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from dataflex.core.errors import ComponentError, Problem, listed
from dataflex.model.autocast import autocast
from dataflex.model.cross_entropy import at_positions
from dataflex.model.label_logits import label_positions
from dataflex.model.label_losses import losses_at_labels
from dataflex.model.unwrapped import sharding_engine
from dataflex.scoring.model_beside import contradicting, load_beside, text_tokenizer, tokenizer_beside
from dataflex.utils.logging import logger

if TYPE_CHECKING:
    from accelerate import Accelerator

KEY = "reference_model"
_SHOWN = 3  # tokens that a message names


def engine_problem(accelerator: Accelerator | None) -> Problem | None:
    """Returns a problem where a rank holds only a part of the weights: FSDP, DeepSpeed ZeRO-3, Megatron-LM."""
    engine = sharding_engine(accelerator)
    if engine is None:
        return None
    way_out = "use DDP or DeepSpeed ZeRO-1 or ZeRO-2, or train a LoRA adapter to save memory"
    return Problem("engine", f"{engine} shards the weights over the ranks, and the reference is held whole", way_out)


def loaded_reference(path: str, accelerator: Accelerator | None) -> Any:
    """Returns the model in eval mode, in the precision that it was saved in, none of its weights with a gradient.

    Args:
        path: The model, as ``from_pretrained`` takes it.
        accelerator: The run's accelerator, for the device; None leaves it where it is loaded.

    Raises:
        ComponentError: It cannot be loaded.
    """
    return load_beside(KEY, path, accelerator).eval().requires_grad_(False)


def require_same_tokens(path: str, tokenizer: Any) -> None:
    """Refuses a reference whose tokenizer means other tokens by the same numbers. Reads no weights.

    Tokens that the reference has not do not matter here: ``within_vocabulary`` looks at the numbers of the rows.

    Args:
        path: The reference.
        tokenizer: What the rows were tokenised with; a processor of several kinds of data has one.

    Raises:
        ComponentError: It names the first such tokens.
    """
    if tokenizer is None:
        return
    own, other = text_tokenizer(tokenizer), tokenizer_beside(path)
    if other is None:
        logger.warning("%s: %s holds no tokenizer, so its tokens are taken for those of the run", KEY, path)
        return
    ours, theirs = own.get_vocab(), {number: token for token, number in other.get_vocab().items()}
    apart = contradicting(ours, other.get_vocab())
    shown = [f"{ours[t]} is {t!r} here and {theirs.get(ours[t], 'none')!r} there" for t in apart[:_SHOWN]]
    if shown:
        raise ComponentError(
            f"{KEY}: the tokens of {path} are not those of the run: {listed(shown)} -> use a model with the tokenizer "
            "of the run"
        )


def reference_losses(
    model: Any, inputs: Mapping[str, Any], accelerator: Accelerator, count: int | None = None
) -> torch.Tensor:
    """Returns the token losses of a micro-batch under the reference: (B, T) fp32, at the position before each label.

    One forward pass without gradients; logits at label positions alone, or none where the vocabulary is large.

    Args:
        model: The reference.
        inputs: The micro-batch, on the device, with ``labels`` (B, T).
        accelerator: For mixed precision.
        count: M where it is known: the host then does not wait for the device.
    """
    given = dict(inputs)
    labels_BT = given.pop("labels")
    positions_M, targets_M = label_positions(labels_BT, count)
    with torch.no_grad(), losses_at_labels(model) as forward, autocast(accelerator):
        losses_M = forward(given, positions_M, targets_M, labels_BT.shape)
    return at_positions(losses_M, positions_M.to(losses_M.device), labels_BT.shape)
