"""The reference model of a weighter: loaded whole, frozen, and held against the tokens of the run.

Letters: B rows of a micro-batch, T tokens, M labels that are predicted.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from dataflex.core.errors import ComponentError, Problem, listed
from dataflex.model.autocast import autocast
from dataflex.model.cross_entropy import at_positions
from dataflex.model.label_logits import label_positions
from dataflex.model.label_losses import losses_at_labels
from dataflex.model.undisturbed import same_random_states
from dataflex.model.unwrapped import sharding_engine
from dataflex.model.whole import whole_models
from dataflex.utils.logging import logger
from packaging.version import Version
from transformers import AutoModelForCausalLM, AutoTokenizer

if TYPE_CHECKING:
    from accelerate import Accelerator
    from dataflex.scoring.passes.row_pass import Collator

KEY = "reference_model"
_DTYPE = "dtype" if Version(transformers.__version__) >= Version("4.56") else "torch_dtype"
_FILES = ("tokenizer*", "vocab*", "*.model", "*.tiktoken")  # one of which a tokenizer leaves in a folder
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
    try:
        with whole_models(), same_random_states():  # making a model draws random numbers
            loaded: Any = AutoModelForCausalLM.from_pretrained(path, **{_DTYPE: "auto"})
    except (OSError, ValueError) as error:
        raise ComponentError(f"{KEY}: {path} cannot be loaded: {error} -> name a causal model") from error
    model: Any = loaded.eval().requires_grad_(False)
    return model if accelerator is None else model.to(accelerator.device)


def require_same_tokens(path: str, tokenizer: Any) -> None:
    """Refuses a reference whose tokenizer means other tokens by the same numbers. Reads no weights.

    Numbers that only one of the two has do not matter here: :func:`within_vocabulary` looks at those of the rows.

    Args:
        path: The reference.
        tokenizer: What the rows were tokenised with; a processor of several kinds of data has one.

    Raises:
        ComponentError: It names the first such tokens.
    """
    own = vars(tokenizer).get("tokenizer", tokenizer) if tokenizer is not None else None
    if own is None:
        return
    folder, other = Path(path).expanduser(), None
    if not folder.is_dir() or any(file for pattern in _FILES for file in folder.glob(pattern)):
        with contextlib.suppress(OSError, ValueError):  # of a folder without one, a made-up tokenizer would be returned
            other = AutoTokenizer.from_pretrained(path)
    if other is None:
        logger.warning("%s: %s holds no tokenizer, so its tokens are taken for those of the run", KEY, path)
        return
    theirs = {number: token for token, number in other.get_vocab().items()}
    ours = sorted((number, token) for token, number in own.get_vocab().items())
    apart = (f"{n} is {token!r} here and {theirs[n]!r} there" for n, token in ours if theirs.get(n, token) != token)
    shown = list(itertools.islice(apart, _SHOWN))
    if shown:
        raise ComponentError(
            f"{KEY}: the tokens of {path} are not those of the run: {listed(shown)} -> use a model with the tokenizer "
            "of the run"
        )


def within_vocabulary(path: str, model: Any, collator: Collator) -> Collator:
    """Returns a collator that refuses tokens without an embedding: a GPU would fail without a name for them.

    Args:
        path: The reference.
        model: It, loaded.
        collator: Makes a batch of tensors from a list of rows.
    """
    known = len(model.get_input_embeddings().weight)

    def collate(rows: list[Any]) -> Mapping[str, torch.Tensor]:
        batch = collator(rows)
        largest = int(batch["input_ids"].max())
        if largest >= known:
            raise ComponentError(
                f"{KEY}: {path} knows {known} tokens, and the dataset has token {largest} -> use a model with the "
                "tokenizer of the run"
            )
        return batch

    return collate


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
