"""Numbers of the tokens of rows, put where these tokens stand in the micro-batches of a step.

A row's numbers are known by its place in the train dataset, token by token. A collator pads rows on either side, or
puts them one after the other into one. So each row is looked for in its batch by its tokens, and a row that is not
there as it stands in the dataset is an error: a number never goes to another token.

Letters: B rows of a micro-batch, T tokens, n tokens of a row, X rows that are named.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from dataflex.core.errors import ComponentError
from dataflex.interfaces.weighter import MicroBatch
from dataflex.rows.columns import IGNORED, token_ids
from dataflex.rows.row_numbers import documents
from numpy.typing import NDArray

RowNumbers = Callable[[NDArray[np.int64]], Sequence[NDArray[np.floating[Any]]]]
"""``numbers(rows_X)`` -> for each row (n,) numbers, one for each of its tokens."""


@dataclass(frozen=True)
class HostBatch:
    """A micro-batch on the CPU.

    Attributes:
        tokens: (B, T) token ids.
        predicted: (B, T) bool, whether the token is one whose loss is taken.
        rows: (X,) the rows in it, in order.
    """

    tokens: NDArray[np.int64]
    predicted: NDArray[np.bool_]
    rows: NDArray[np.int64] | None


def on_host(batches: Sequence[MicroBatch]) -> list[HostBatch]:
    """Returns the micro-batches of a step on the CPU. The host waits for the device once.

    Raises:
        ComponentError: A batch holds no tokens or no labels.
    """
    parts: list[torch.Tensor] = []
    for batch in batches:
        tokens, labels = batch.inputs.get("input_ids"), batch.inputs.get("labels")
        if not isinstance(tokens, torch.Tensor) or not isinstance(labels, torch.Tensor) or tokens.shape != labels.shape:
            raise ComponentError(
                "tokens cannot be weighed: the data collator makes no input_ids and labels of one shape -> use one "
                "that makes both, (rows, tokens)"
            )
        parts += [tokens.long(), labels.long(), *([] if batch.rows is None else [batch.rows.long()])]
    ends = np.cumsum([part.numel() for part in parts])
    read = iter(np.split(torch.cat([part.flatten() for part in parts]).cpu().numpy(), ends[:-1]))  # one read
    found = []
    for batch in batches:
        shape = batch.inputs["labels"].shape
        tokens_BT, predicted_BT = next(read).reshape(shape), next(read).reshape(shape) != IGNORED
        predicted_BT[:, 0] = False  # the first token of a row is predicted from nothing
        found.append(HostBatch(tokens_BT, predicted_BT, None if batch.rows is None else next(read)))
    return found


def placed_numbers(batch: HostBatch, dataset: Any, numbers: RowNumbers, what: str) -> NDArray[np.float32]:
    """Returns the numbers of a micro-batch's tokens: (B, T) float32 at each token's own position, NaN elsewhere.

    Args:
        batch: The micro-batch.
        dataset: The train dataset.
        numbers: The numbers of rows.
        what: What they are, for messages.

    Raises:
        ComponentError: The batch does not say which rows it holds, holds a row in another form than the dataset, or a
            token to be predicted has no number. It names the row.
    """
    if batch.rows is None:
        raise ComponentError(f"the batch does not say which rows it holds, so {what} cannot be placed")
    B, T = batch.tokens.shape
    rows = batch.rows if len(batch.rows) == B else _once(batch.rows, dataset)
    ids, values = token_ids(dataset, rows), numbers(rows)
    found = np.full((B, T), np.nan, dtype=np.float32)
    place = 0  # where the next row begins, where all stand in one
    for number, (row, own, row_values) in enumerate(zip(rows.tolist(), ids, values, strict=True)):
        assert isinstance(own, np.ndarray), "rows with pairs of answers are refused before"
        if len(row_values) != len(own):
            raise ComponentError(f"row {row} has {len(own)} tokens and {len(row_values)} numbers of {what}")
        line, starts = (number, (0, T - len(own))) if len(rows) == B else (0, (place,))
        start = next((s for s in starts if s >= 0 and np.array_equal(batch.tokens[line, s : s + len(own)], own)), None)
        if start is None:
            raise ComponentError(
                f"row {row} of the train dataset does not stand in its batch with its {len(own)} tokens, so {what} "
                "cannot be placed -> use a data collator that neither cuts nor changes rows"
            )
        found[line, start : start + len(own)] = row_values
        place = start + len(own)
    bad = np.argwhere(batch.predicted & np.isnan(found))
    if len(bad):
        line, token = bad[0].tolist()
        row = rows[line] if len(rows) == B else rows[0]
        raise ComponentError(
            f"the token at position {token} of row {row}, or of a row packed with it, is trained on and has no number "
            f"of {what} -> use a data collator that makes no labels beyond those of the rows"
        )
    return found


def before_labels(numbers_BT: NDArray[np.float32], device: torch.device) -> torch.Tensor:
    """Returns numbers at the position before each token, where its loss stands: (B, T) on the device, 0 for none."""
    moved_BT = np.zeros_like(numbers_BT)
    moved_BT[:, :-1] = numbers_BT[:, 1:]
    return torch.from_numpy(np.nan_to_num(moved_BT)).to(device, non_blocking=True)


def _once(rows_S: NDArray[np.int64], dataset: Any) -> NDArray[np.int64]:
    """Returns the rows of a batch in which each stands as often as it has documents."""
    found, place = [], 0
    while place < len(rows_S):
        found.append(int(rows_S[place]))
        place += documents(dataset[found[-1]])
    return np.array(found, dtype=np.int64)
