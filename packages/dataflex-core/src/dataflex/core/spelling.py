"""Misspelt names: which allowed name was meant.

A name was meant where it is the same but for case, blanks, ``-`` and ``_``; where it differs by one letter (one too
many, one missing, another one, or two that changed places) or, from nine letters on, by two; or where it is another
program's word for the same value. Names that share a part, such as ``cluster_size`` and ``clusters``, mean different
things, and so do names that differ by a word, though it be one letter: ``use_lora`` and ``use_dora``, ``min_samples``
and ``max_samples``, ``adam_beta1`` and ``adam_beta2``. Following such a hint would change the results.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable

RENAMED = {
    "lr": "learning_rate",
    "batch_size": "per_device_train_batch_size",
    "epochs": "num_train_epochs",
    "num_epochs": "num_train_epochs",
    "model": "model_name_or_path",
    "model_path": "model_name_or_path",
    "gradient_accumulation": "gradient_accumulation_steps",
    "grad_accumulation_steps": "gradient_accumulation_steps",
    "max_seq_length": "cutoff_len",
    "components_file": "components_cfg_file",
    "num_clusters": "clusters",
    "n_clusters": "clusters",
    "num_directions": "directions",
    "projection_dim": "proj_dim",
    "projector_dim": "proj_dim",
    "proxy_dim": "proj_dim",
    "embedding_dim": "dim",
    "num_neighbors": "neighbours",
    "n_neighbors": "neighbours",
    "generation_temperature": "temperature",
    "sampling_temperature": "temperature",
    "num_candidates": "candidates",
}
"""What other programs call a value -> its name here, for those that mean the same."""

_BESIDE = {"generation_temperature": "top_p", "sampling_temperature": "top_p"}
"""A name of :data:`RENAMED` -> what is allowed beside it where it means the same: other temperatures draw no text."""

_SHORT, _LONG = 3, 9  # letters from which on one letter, and two letters, may be wrong
_WORD = 6  # letters from which on two may be wrong in a word between underscores


def alike(name: str, allowed: Iterable[str]) -> tuple[str, ...]:
    """Returns the allowed names that ``name`` may be a misspelling of: those that are nearest, sorted."""
    plain, allowed = _plain(name), list(allowed)
    distances = {other: _distance(plain, _plain(other)) for other in allowed}
    least = min(distances.values(), default=0)
    found = tuple(sorted(other for other, distance in distances.items() if distance == least))
    if found and least <= _most(min(len(plain), *(len(_plain(other)) for other in found))):
        vocabulary = {word for other in allowed for word in _words(other)}
        return tuple(other for other in found if not _says_another_thing(name, other, vocabulary))
    written = "_".join(_words(name))
    renamed, beside = RENAMED.get(written), _BESIDE.get(written)
    return (renamed,) if renamed in distances and (beside is None or beside in distances) else ()


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter not in "-_. ")


def _words(name: str) -> list[str]:
    return re.split("[-_. ]", name.strip().lower())


def _says_another_thing(name: str, other: str, vocabulary: Collection[str]) -> bool:
    """Whether two names differ by a word that is none of the other's misspelt."""
    if _plain(name) == _plain(other):
        return False
    mine, theirs = _words(name), _words(other)
    if len(mine) == len(theirs):
        return any(_is_another_word(a, b, vocabulary) for a, b in zip(mine, theirs, strict=True) if a != b)
    few, many = sorted([mine, theirs], key=len)
    return not Counter(few) - Counter(many) and all(Counter(many) - Counter(few))


def _is_another_word(word: str, other: str, vocabulary: Collection[str]) -> bool:
    if not word or not other or word in (f"{other}s", other.removesuffix("s")):
        return False
    digits, others = (re.sub(r"\D", "", each) for each in (word, other))
    numbered = len(digits) == len(others) and digits != others
    if len(word) == len(other) and sorted(word) != sorted(other) and (word in vocabulary or numbered):
        return True  # letters that changed places are a slip, though "no" and "on" be both words
    at_most = 0 if len(word) == len(other) == 1 else 1 if min(len(word), len(other)) < _WORD else 2
    return _distance(word, other) > at_most


def _most(length: int) -> int:
    return 0 if length < _SHORT else 1 if length < _LONG else 2


def _distance(a: str, b: str) -> int:
    """Returns how many letters were left out, added, changed, or swapped with the next; at most three are counted."""
    if abs(len(a) - len(b)) > 2 or len(set(a) ^ set(b)) > 4:  # one change is at most one letter less and one more
        return 3
    before: list[int] = []
    last = list(range(len(b) + 1))
    for i, letter in enumerate(a, 1):
        row = [i]
        for j, other in enumerate(b, 1):
            cost = min(last[j] + 1, row[j - 1] + 1, last[j - 1] + (letter != other))
            if i > 1 and j > 1 and letter == b[j - 2] and a[i - 2] == other:
                cost = min(cost, before[j - 2] + 1)
            row.append(cost)
        before, last = last, row
    return min(last[-1], 3)
