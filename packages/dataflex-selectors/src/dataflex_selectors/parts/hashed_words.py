"""Bags of hashed n-grams of the words of texts, as the authors of DSIR count them.

    words   of the text in lower case: runs of word characters, and runs of what is neither that nor white space
    grams   1 to n neighbouring words, joined by one space
    bucket  SHA-256 of the gram in UTF-8, as one big-endian integer, modulo the number of buckets

The bucket of a gram is remembered, as long as there are not too many: half of the grams of a text are of few kinds.

Not covered: spelling. Words that differ in a letter are different words.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_WORD = re.compile(r"\w+|[^\w\s]+")
_REMEMBERED = 2**19  # grams: 100 MB


def words_of(text: str) -> list[str]:
    """Returns the words and the runs of punctuation of a text, in lower case."""
    return _WORD.findall(text.lower())


def bucket_of(gram: str, buckets: int) -> int:
    """Returns the bucket of an n-gram of words: a whole number below ``buckets``."""
    return int.from_bytes(hashlib.sha256(gram.encode("utf-8", "surrogatepass")).digest(), "big") % buckets


class WordBuckets:
    """Counts the n-grams of texts by bucket.

    Args:
        most: The largest n, at least 1.
        buckets: How many buckets.
    """

    def __init__(self, most: int, buckets: int) -> None:
        self._most, self._buckets = most, buckets
        self._known: dict[str, int] = {}

    def of(self, texts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Returns the bucket of each n-gram of some texts, the text that it is in, and the words of each text.

        (G,), (G,) and (B,) for B texts with G n-grams together.
        """
        found: list[int] = []
        grams_B, words_B = [], []
        for text in texts:
            words = words_of(text)
            grams = list(words)
            for size in range(2, self._most + 1):
                grams += map(" ".join, zip(*(words[first:] for first in range(size)), strict=False))
            found += self._each(grams)
            grams_B.append(len(grams))
            words_B.append(len(words))
        rows = np.repeat(np.arange(len(texts)), np.array(grams_B, dtype=np.int64))
        return np.array(found, dtype=np.int64), rows, np.array(words_B, dtype=np.int64)

    def _each(self, grams: list[str]) -> list[int]:
        known = self._known
        if len(known) > _REMEMBERED:
            known.clear()
        for gram in grams:
            if gram not in known:
                known[gram] = bucket_of(gram, self._buckets)
        return [known[gram] for gram in grams]
