"""Embeddings by hashed n-grams of tokens: which tokens rows have in common. No model, no dependency.

Every token and every pair of neighbouring tokens is hashed to one of D buckets and a sign; a row is the vector of its
signed counts, damped and brought to length 1:

    c_b  = sum of sign(g) over the n-grams g of the row in bucket b
    x_b ~ sign(c_b) log(1 + |c_b|)

With the sign, two n-grams that meet in a bucket cancel as often as they add, so the inner product of two rows is, on
average over hash functions, that without collisions (Weinberger et al. 2009, arXiv 0902.2206, section 2). Its standard
deviation is about 1 / sqrt(D): 0.03 for the default of 1024. The logarithm, taken per bucket, limits the weight of the
few tokens that are everywhere.

Not covered: meaning. Two rows that say the same in other words are not similar here. What a chat template adds is the
same in every row: it makes all rows more similar, and does not change their order.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_ODD = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio: spreads small numbers over all bits


def ngram_embeddings(tokens: Sequence[NDArray[np.integer]], dim: int) -> NDArray[np.float32]:
    """Returns the embedding of each row: (B, D) float32 of length 1; zeros for a row without tokens.

    Args:
        tokens: B arrays of token ids, of any lengths.
        dim: Number of buckets, D.
    """
    grams, rows = hashed_ngrams(tokens, 2)
    places = rows * dim + (grams % np.uint64(dim)).astype(np.int64)
    signs = np.where(grams >> np.uint64(63), -1.0, 1.0)
    counts_BD = np.bincount(places, signs, len(tokens) * dim).reshape(len(tokens), dim)
    damped_BD = np.sign(counts_BD) * np.log1p(np.abs(counts_BD))
    length_B = np.linalg.norm(damped_BD, axis=1, keepdims=True)
    unit_BD = np.divide(damped_BD, length_B, out=np.zeros_like(damped_BD), where=length_B > 0)
    return np.asarray(unit_BD, dtype=np.float32)


def hashed_ngrams(tokens: Sequence[NDArray[np.integer]], most: int) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Returns 64 bits for each n-gram of 1 to ``most`` neighbouring tokens, and its row: (G,) twice.

    All single tokens come first, row by row, then all pairs, and so on. The same n-gram has the same bits anywhere.

    Args:
        tokens: B arrays of token ids, of any lengths.
        most: The largest n, at least 1.
    """
    lengths = np.array([len(row) for row in tokens], dtype=np.int64)
    ids = np.concatenate([np.empty(0, dtype=np.int64), *tokens]).astype(np.uint64)
    rows = np.repeat(np.arange(len(tokens)), lengths)
    grams, places = [_hashed(ids)], [np.arange(len(ids))]
    for size in range(2, most + 1):
        first = places[-1][places[-1] + size - 1 < len(ids)]
        first = first[rows[first] == rows[first + size - 1]]  # all tokens of an n-gram belong to one row
        shorter = grams[-1][np.searchsorted(places[-1], first)]
        grams.append(_hashed(shorter + ids[first + size - 1]))
        places.append(first)
    return np.concatenate(grams), rows[np.concatenate(places)]


def _hashed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Returns 64 bits for each number that look random; overflow is meant to wrap."""
    mixed = (values + np.uint64(1)) * _ODD
    for _ in range(2):
        mixed = (mixed ^ (mixed >> np.uint64(32))) * _ODD
    return mixed ^ (mixed >> np.uint64(29))
