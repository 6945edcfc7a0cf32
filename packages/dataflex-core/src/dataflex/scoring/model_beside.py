"""A model that scores beside the one that is trained: loaded, and its tokens held against those of the run."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from packaging.version import Version
from transformers import AutoTokenizer

from dataflex.core.errors import ComponentError
from dataflex.model.undisturbed import same_random_states
from dataflex.model.whole import load_whole
from dataflex.scoring.passes.row_pass import Collator

if TYPE_CHECKING:
    from accelerate import Accelerator

_DTYPE = "dtype" if Version(transformers.__version__) >= Version("4.56") else "torch_dtype"
_FILES = ("tokenizer*", "vocab*", "*.model", "*.tiktoken")  # one of which a tokenizer leaves in a folder

WAY_OUT = "name a folder that holds a causal model, or the name of one that can be reached"


def load_beside(key: str, path: str, accelerator: Accelerator | None, way_out: str = WAY_OUT) -> Any:
    """Returns a causal model, whole on every rank, in the precision that it was saved in. Draws no random numbers.

    Args:
        key: The parameter that names it, for messages.
        path: As ``from_pretrained`` takes it.
        accelerator: The run's accelerator, for the device; None leaves the model where it is loaded.
        way_out: What to do where it cannot be loaded.

    Raises:
        ComponentError: It cannot be loaded.
    """
    try:
        with same_random_states():  # making a model draws random numbers
            model: Any = load_whole(path, **{_DTYPE: "auto"})
    except (OSError, ValueError) as error:
        said = " ".join(str(error).split())  # of several lines, where there is no such model
        cause = None if isinstance(error, OSError) else error  # whose traceback is printed
        raise ComponentError(f"{key}: {path} cannot be loaded: {said} -> {way_out}") from cause
    return model if accelerator is None else model.to(accelerator.device)


def tokenizer_beside(path: str) -> Any | None:
    """Returns the tokenizer that is saved with a model; None where there is none. Reads no weights.

    For a folder without one, transformers 5.5 makes up a tokenizer from the kind of the model, so its files are looked
    for first.
    """
    folder = Path(path)
    if folder.is_dir() and not any(file for pattern in _FILES for file in folder.glob(pattern)):
        return None
    found: Any = None
    with contextlib.suppress(OSError, ValueError):
        found = AutoTokenizer.from_pretrained(path)
    return found


def text_tokenizer(tokenizer: Any) -> Any:
    """Returns a tokenizer, or that of a processor for images and text."""
    return vars(tokenizer).get("tokenizer", tokenizer)


def contradicting(run: Mapping[str, int], other: Mapping[str, int]) -> list[str]:
    """Returns the tokens of a vocabulary that mean something else in another one, by their numbers.

    A token that the other one has not, at a number that it has not either, is none of them: templates add such.

    Args:
        run: Token -> number.
        other: The same.
    """
    taken = set(other.values())
    found = [token for token, number in run.items() if other.get(token, -1 if number in taken else number) != number]
    return sorted(found, key=run.__getitem__)


def within_vocabulary(key: str, path: str, model: Any, collator: Collator) -> Collator:
    """Returns a collator that refuses tokens which a model does not know.

    On a GPU they would end in an error that does not name them.

    Args:
        key: The parameter that names the model.
        path: Its name.
        model: The model.
        collator: Makes a batch of tensors from a list of rows.
    """
    vocabulary = len(model.get_input_embeddings().weight)

    def collate(rows: list[Any]) -> Mapping[str, torch.Tensor]:
        batch = collator(rows)
        largest = int(batch["input_ids"].max())
        if largest >= vocabulary:
            raise ComponentError(
                f"{key}: {path} knows {vocabulary} tokens, and the dataset has token {largest} -> use a model with the "
                "tokenizer of the run"
            )
        return batch

    return collate
