"""Losses under a model besides the one that is trained, of rows as its own tokenizer has them.

A small model may score rows for a large one. Where its tokenizer gives the same numbers to all tokens of the run's, the
rows are scored as they are. Where not, their texts are decoded and encoded again: special tokens are left out, and what
was a label stays one, up to a token at the border of two parts.

Letters: N rows, T tokens.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from dataflex.rows.columns import IGNORED, columns_chunks
from dataflex.rows.lengths import row_lengths
from dataflex.scoring import ScoreStore, per_sample_losses
from dataflex.scoring.model_beside import load_beside, text_tokenizer, tokenizer_beside, within_vocabulary
from dataflex.scoring.passes.fingerprint import dataset_digest, digest, model_digest
from dataflex.scoring.passes.row_pass import Collator
from dataflex.scoring.trial import try_losses
from dataflex.train.selector.base_selector import Selector
from dataflex.utils.logging import logger
from numpy.typing import NDArray


def padded(rows: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, torch.Tensor]:
    """Returns rows as a batch, padded on the right: ``input_ids``, ``attention_mask`` and ``labels``, each (B, T).

    Args:
        rows: At least one, with ``input_ids`` and ``labels`` of equal length.
    """
    ids = [torch.as_tensor(row["input_ids"], dtype=torch.long) for row in rows]
    labels = [torch.as_tensor(row["labels"], dtype=torch.long) for row in rows]
    masks = [torch.ones_like(each) for each in ids]
    stacked = zip(("input_ids", "attention_mask", "labels"), (ids, masks, labels), (0, 0, IGNORED), strict=True)
    return {
        key: torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=padding)
        for key, tensors, padding in stacked
    }


@dataclass(frozen=True)
class ReencodedRows:
    """The rows of a dataset in the tokens of another tokenizer, made when they are read.

    Attributes:
        dataset: The tokenised dataset.
        tokenizer: What it was tokenised with.
        other: What the rows are wanted in.
        longest: Most tokens of a row; the others are cut off.
    """

    dataset: Any
    tokenizer: Any
    other: Any
    longest: int

    def __len__(self) -> int:
        return len(self.dataset)

    def row_lengths(self) -> NDArray[np.int64]:
        """Returns about how many tokens each row has: (N,) int64, those of the run's tokenizer."""
        return np.minimum(row_lengths(self.dataset), self.longest)

    def __getitem__(self, row: int) -> dict[str, list[int]]:
        ((values,),) = columns_chunks(self.dataset, ("input_ids", "labels"), np.array([row], dtype=np.int64))
        ids, labels = values if len(values[1]) else (values[0], values[0])
        found, learnt = _begin(self.other), [IGNORED] * len(_begin(self.other))
        for start, end in parts(labels != IGNORED):
            text = self.tokenizer.decode(ids[start:end].tolist(), skip_special_tokens=True)
            part = self.other(text, add_special_tokens=False)["input_ids"]
            found = found + part
            learnt += part if labels[start] != IGNORED else [IGNORED] * len(part)
        found, learnt = found[: self.longest], learnt[: self.longest]
        # A row without text is one token that nothing is learnt from: it has no loss.
        return {"input_ids": found, "labels": learnt} if found else {"input_ids": [0], "labels": [IGNORED]}


def parts(marked_T: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Returns the stretches of equal value, each as its start and its end: none for no values."""
    if not len(marked_T):
        return []
    ends = [*(np.flatnonzero(marked_T[1:] != marked_T[:-1]) + 1).tolist(), len(marked_T)]
    return list(zip([0, *ends], ends, strict=False))


def rows_for(path: str, model: Any, dataset: Any, tokenizer: Any) -> tuple[Any, Any]:
    """Returns a dataset in the tokens of a model, and the tokenizer of these.

    The dataset itself where they are the same, and where that is not known: a model without a tokenizer beside it, or a
    run without one.

    Args:
        path: The model.
        model: It, loaded.
        dataset: The tokenised dataset.
        tokenizer: What it was tokenised with; None where that is not known.
    """
    if tokenizer is None:
        return dataset, None
    run, other = text_tokenizer(tokenizer), tokenizer_beside(path)
    if other is None:
        logger.warning("%s holds no tokenizer: its tokens are taken for those of the run", path)
        return dataset, run
    theirs = other.get_vocab()
    if all(theirs.get(token) == number for token, number in run.get_vocab().items()):
        return dataset, run
    longest = int(getattr(model.config, "max_position_embeddings", 0) or 2**31)  # not every architecture has a limit
    return ReencodedRows(dataset, run, other, longest), other


def losses_under(
    key: str,
    path: str,
    selector: Selector,
    tokenizer: Any,
    token_budget: int | None,
    what: str,
) -> tuple[NDArray[np.float32], OtherModel]:
    """Returns the mean token losses of a selector's rows under a model: (N,), NaN without a label. Collective.

    Args:
        key: The parameter that names the model.
        path: The model.
        selector: The selector, for its rows, collator, ranks, name and ``cache_dir``.
        tokenizer: What the rows were tokenised with.
        token_budget: Tokens that are scored at once; None for a default.
        what: What the losses are, for a progress bar and the folder of the cache.

    Returns:
        The losses, and the model with the rows that it scored.
    """
    other = OtherModel.of(key, path, selector, tokenizer)
    losses_N = per_sample_losses(
        other.model,
        other.rows,
        collator=other.collator,
        accelerator=selector.accelerator,
        token_budget=token_budget,
        desc=f"{selector.name}: {what} under {other.shown}",
        store=other.store(selector, what, token_budget),
    )
    return losses_N, other


def try_losses_under(key: str, path: str, selector: Selector, tokenizer: Any) -> None:
    """Loads a model, scores two rows with it and frees it. Makes no collective call.

    Raises:
        ComponentError: It cannot be loaded, gives rows no loss, or has fewer tokens than these rows use.
    """
    other = OtherModel.of(key, path, selector, tokenizer)
    try_losses(other.model, other.rows, other.collator, None)


@dataclass(frozen=True)
class OtherModel:
    """A loaded model, with the rows of a selector in its tokens.

    Attributes:
        path: Its name or folder.
        model: It, on the device, whole.
        rows: The selector's dataset, or that encoded again.
        tokenizer: The tokenizer of the rows; None where the run has none.
        collator: Makes a batch of these rows; it refuses tokens that the model does not know.
    """

    path: str
    model: Any
    rows: Any
    tokenizer: Any
    collator: Collator

    @classmethod
    def of(cls, key: str, path: str, selector: Selector, tokenizer: Any) -> OtherModel:
        """Loads the model. See :func:`losses_under`."""
        model = load_beside(key, path, selector.accelerator)
        rows, own = rows_for(path, model, selector.dataset, tokenizer)
        collator = selector.data_collator if rows is selector.dataset else padded
        return cls(path, model, rows, own, within_vocabulary(key, path, model, collator))

    @property
    def shown(self) -> str:
        """A short name for messages."""
        return os.path.basename(self.path.rstrip("/"))

    def store(self, selector: Selector, what: str, *more: object) -> ScoreStore | None:
        """Returns where the values of a pass are kept while it runs.

        Args:
            selector: Whose pass it is.
            what: What is computed: a folder of that name inside of ``cache_dir``.
            *more: What else the values depend on.
        """

        def fingerprint() -> str:
            vocabulary = "" if self.rows is selector.dataset else digest(*sorted(self.tokenizer.get_vocab().items()))
            return digest(what, model_digest(self.model), dataset_digest(selector.dataset), vocabulary, *more)

        folder = os.path.join(selector.cache_dir, what.replace(" ", "_"))
        return ScoreStore.of(folder, selector.accelerator, fingerprint, selector.cache_owner)


def _begin(tokenizer: Any) -> list[int]:
    """Returns what a tokenizer puts before a text: its start token, or nothing."""
    alone = tokenizer("")["input_ids"]
    return [token for token in alone if token == tokenizer.bos_token_id]
