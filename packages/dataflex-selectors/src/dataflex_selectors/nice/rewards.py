"""The reward of an answer: its text compared with the reference answer's."""

from __future__ import annotations

import string
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_DROPPED = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class Answer:
    """An answer to a prompt.

    Attributes:
        prompt: What was asked.
        text: What was answered.
        reference: The reference answer.
    """

    prompt: str
    text: str
    reference: str


def normalized(text: str) -> str:
    """Returns the text without case, punctuation and differences of white space, in Unicode's compatible form."""
    plain = unicodedata.normalize("NFKC", text).casefold().translate(_DROPPED)
    return " ".join(plain.split())


def exact_match(answers: Sequence[Answer]) -> NDArray[np.float64]:
    """Returns 1 for each answer that is the reference once both are normalised, else 0."""
    return np.array([float(normalized(a.text) == normalized(a.reference)) for a in answers])


def contains(answers: Sequence[Answer]) -> NDArray[np.float64]:
    """Returns 1 for each answer that holds the normalised reference as whole words, else 0.

    A reference of nothing but punctuation is in no answer.
    """
    return np.array([float(_holds(normalized(a.text), normalized(a.reference))) for a in answers])


def _holds(text: str, part: str) -> bool:
    return bool(part) and f" {part} " in f" {text} "
