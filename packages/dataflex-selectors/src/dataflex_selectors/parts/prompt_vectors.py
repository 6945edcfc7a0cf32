"""A vector for each prompt by the words that it holds: no model, no tokenizer, the same on every machine.

Words and marks are hashed to numbers, which :mod:`dataflex.scoring.ngrams` counts as it does tokens: each by
itself and with the one before it.
"""

from __future__ import annotations

import re
import zlib
from typing import Any

import numpy as np
from dataflex.rows.prompt_texts import prompt_texts
from dataflex.scoring.ngrams import ngram_embeddings
from dataflex.utils.progress import Progress
from numpy.typing import NDArray

_WORD = re.compile(r"\w+|[^\w\s]")
_AT_ONCE = 1024  # prompts


def prompt_vectors(dataset: Any, dim: int) -> NDArray[np.float32]:
    """Returns the vectors of all prompts: (N, D) float32 of length 1; zeros for one that says nothing.

    Args:
        dataset: Rows with a ``prompt``.
        dim: D.
    """
    size, parts = len(dataset), [np.empty((0, dim), dtype=np.float32)]
    with Progress("reading prompts", size) as progress:
        for start in range(0, size, _AT_ONCE):
            rows = np.arange(start, min(start + _AT_ONCE, size))
            parts.append(ngram_embeddings([word_numbers(text) for text in prompt_texts(dataset, rows)], dim))
            progress.done(len(rows))
    return np.concatenate(parts)


def word_numbers(text: str) -> NDArray[np.int64]:
    """Returns a number for each word and mark of a text: (T,), letters of either case alike."""
    return np.array(
        [zlib.crc32(word.encode(errors="surrogatepass")) for word in _WORD.findall(text.lower())], dtype=np.int64
    )
