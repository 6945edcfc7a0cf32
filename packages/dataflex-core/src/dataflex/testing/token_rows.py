"""Random token rows shaped as LLaMA-Factory's supervised datasets are, and a collator for them."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import torch
from torch.utils.data import Dataset

from dataflex.testing.devices import device
from dataflex.testing.special_tokens import TINY_SPECIAL_TOKENS

_FIRST_WORD = len(TINY_SPECIAL_TOKENS)
_PADDING = {"input_ids": 0, "attention_mask": 0, "labels": -100}


class TokenRows(Dataset[dict[str, list[int]]]):
    """``count`` rows of random tokens: ``input_ids``, ``attention_mask`` and ``labels``, lists of ints of equal length.

    The first ``prompt`` labels of a row are -100, as a prompt's are; the rest equal the input. Special tokens are never
    drawn. A row is a function of ``seed`` and the sizes alone.

    Args:
        count: Number of rows.
        vocab_size: Tokens are drawn from 3 up to here.
        lengths: An int gives every row that length, a range draws each row's length from it, a sequence names them all.
        prompt: Masked labels at the start of each row; fewer than the shortest length.
        seed: Seed of the rows.
    """

    def __init__(
        self,
        count: int = 32,
        *,
        vocab_size: int = 128,
        lengths: int | range | Sequence[int] = 16,
        prompt: int = 2,
        seed: int = 0,
    ) -> None:
        rng = random.Random(seed)
        if isinstance(lengths, int):
            sizes = [lengths] * count
        elif isinstance(lengths, range):
            sizes = [rng.choice(lengths) for _ in range(count)]
        else:
            sizes = list(lengths)
        if len(sizes) != count:
            raise ValueError(f"lengths: {len(sizes)} numbers for {count} rows; give one per row, an int or a range")
        if any(size <= prompt for size in sizes):
            raise ValueError(f"prompt: {prompt} masked tokens leave nothing to learn in a row of {min(sizes)} tokens")
        self._rows = [_row(rng, size, prompt, vocab_size) for size in sizes]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return {key: list(values) for key, values in self._rows[index].items()}


def _row(rng: random.Random, size: int, prompt: int, vocab_size: int) -> dict[str, list[int]]:
    tokens = [rng.randrange(_FIRST_WORD, vocab_size) for _ in range(size)]
    return {"input_ids": tokens, "attention_mask": [1] * size, "labels": [-100] * prompt + tokens[prompt:]}


def tiny_batch(rows: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, torch.Tensor]:
    """Returns the rows as a batch on :func:`~dataflex.testing.device`, for a call of the model.

    Args:
        rows: As for :func:`pad_collate`.
    """
    return {key: tensor.to(device()) for key, tensor in pad_collate(rows).items()}


def pad_collate(rows: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, torch.Tensor]:
    """Pads rows on the right to the longest and stacks them, on the CPU as every collator of a dataloader.

    Args:
        rows: At least one row with ``input_ids``, ``attention_mask`` and ``labels``; lists or 1-d tensors.

    Returns:
        The three keys, each an int64 tensor of shape (rows, longest row); padding is token 0, mask 0, label -100.
    """
    longest = max(len(row["input_ids"]) for row in rows)
    batch = {key: torch.full((len(rows), longest), fill, dtype=torch.long) for key, fill in _PADDING.items()}
    for number, row in enumerate(rows):
        for key, tensor in batch.items():
            tensor[number, : len(row[key])] = torch.as_tensor(row[key])
    return batch
