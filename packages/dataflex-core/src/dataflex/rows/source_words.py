"""The words that stand out in each source, by which people know groups of rows that have no names of their own."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dataflex.core.component import seeded
from dataflex.rows.columns import token_ids
from dataflex.rows.views import MixedSources

_READ = 200  # rows of a source that are read
_TOLD = 4  # words that are told of it
_SHORTEST = 3  # letters of a word that can stand out


def source_words(dataset: MixedSources, tokenizer: Any, seed: int) -> dict[str, tuple[str, ...]]:
    """Returns the words that stand out in each source; empty without a tokenizer. Reads some rows of each.

    They are those with the largest n ln(p / p_all): n of the rows that were read have the word, p is the share of these
    among those read, and p_all the mean of this share over the sources; of as good ones the commonest.

    Args:
        dataset: The sources.
        tokenizer: Turns tokens into text; None where there is none.
        seed: Chooses the rows that are read.
    """
    if tokenizer is None:
        return {}
    found: list[Counter[str]] = []
    read: list[int] = []
    for number, size in enumerate(dataset.sizes.tolist()):
        generator = np.random.Generator(np.random.Philox(key=seeded(seed, "source words", number)))
        rows = np.sort(generator.choice(size, min(size, _READ), replace=False)) + int(dataset.offsets[number])
        texts = tokenizer.batch_decode([_ids(ids) for ids in token_ids(dataset, rows)], skip_special_tokens=True)
        found.append(Counter(word for text in texts for word in set(_words_in(text))))
        read.append(len(rows))
    return dict(zip(dataset.names, standing_out(found, read), strict=True))


def standing_out(found: Sequence[Mapping[str, int]], read: Sequence[int]) -> list[tuple[str, ...]]:
    """Returns the words that stand out in each of several sources, the first one most.

    Args:
        found: For each source, word -> rows that have it.
        read: For each source, the rows that were read.
    """
    sums: dict[str, float] = defaultdict(float)  # one pass for all sources, of which there may be a thousand
    for own, size in zip(found, read, strict=True):
        for word, rows in own.items():
            sums[word] += rows / size
    return [_best(own, sums, size, len(found)) for own, size in zip(found, read, strict=True)]


def _best(own: Mapping[str, int], sums: Mapping[str, float], size: int, sources: int) -> tuple[str, ...]:
    # Rounded, so that words which are as good are not told apart by the order in which shares were added up.
    scores = {word: round(rows * math.log(rows / size * sources / sums[word]), 9) for word, rows in own.items()}
    return tuple(sorted(scores, key=lambda word: (-scores[word], -own[word], word))[:_TOLD])


def in_brackets(words: Sequence[str]) -> str:
    """Returns `` (return, def, self)``; nothing where there are no words."""
    return f" ({', '.join(words)})" if words else ""


def _words_in(text: str) -> list[str]:
    words = "".join(letter if letter.isalnum() or letter == "_" else " " for letter in text.lower()).split()
    return [word for word in words if len(word) >= _SHORTEST and not word.isdecimal()]


def _ids(tokens: Any) -> list[int]:
    parts = tokens.values() if isinstance(tokens, Mapping) else [tokens]
    return [int(number) for part in parts for number in part]
