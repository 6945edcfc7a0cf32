"""How many tokens a run has trained on, counted in the rows that it was given.

LLaMA-Factory takes them from the length of the train dataset times the epochs, which is another number where rows are
chosen or mixed, and none where they are streamed. Here the collator counts each row's tokens, padding left out, and the
numbers travel in the batch, from a worker process too, until the training loop takes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any

import torch

from dataflex.rows.lengths import row_length

if TYPE_CHECKING:
    from accelerate import Accelerator

TOKENS = "dataflex_tokens"
"""The key of a batch under which the (B,) tokens of its rows stand until the trainer takes them out."""


class TokenCount:
    """Counts the tokens that this process trains on.

    Args:
        wanted: Whether anybody asks; where not, batches are as they would be without it.
    """

    def __init__(self, wanted: bool) -> None:
        self._wanted = wanted
        self._total: torch.Tensor | None = None

    def begin(self) -> None:
        """Starts at 0."""
        self._total = None

    def counting(self, collate: Callable[[list[Any]], Any]) -> Callable[[list[Any]], Any]:
        """Returns the collator with the tokens of the rows in each batch."""
        return _CountingCollator(collate) if self._wanted else collate

    def take(self, batches: Iterable[Any]) -> None:
        """Takes the tokens out of the batches of a step and adds them; stays on their device."""
        for batch in batches:
            found = batch.pop(TOKENS, None) if isinstance(batch, MutableMapping) else None
            if found is not None:
                self._total = found.sum() if self._total is None else self._total + found.sum()

    def total(self, accelerator: Accelerator) -> int:
        """Returns the tokens of all ranks since :meth:`begin`. Collective where there is more than one."""
        mine = torch.zeros((), dtype=torch.int64, device=accelerator.device) if self._total is None else self._total
        return int(torch.as_tensor(accelerator.reduce(mine, "sum")))


class _CountingCollator:
    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self._collate = collate

    def __call__(self, rows: list[Mapping[str, Any]]) -> Any:
        tokens = torch.tensor([row_length(row) for row in rows], dtype=torch.int64)  # collators may change rows
        batch = self._collate(rows)
        batch[TOKENS] = tokens
        return batch
