"""The names of what turns rows into vectors: ``ngrams``, ``model``, or a sentence-transformers model."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from dataflex.core.errors import Problem, nearest

BUILT_IN = ("ngrams", "model")
"""Those that need no other package."""


def embedding_problem(found: Any, key: str = "embedding") -> Problem | None:
    """Returns a problem unless ``found`` names an embedding whose package is installed.

    Args:
        found: The value.
        key: The key or parameter.
    """
    if isinstance(found, str) and found in BUILT_IN:
        return None
    close = nearest(str(found), BUILT_IN)
    if not isinstance(found, str) or not found.strip() or close:
        what = f"found {found!r}, allowed: ngrams, model, or the name or path of a sentence-transformers model"
        return Problem(key, what, close)
    if find_spec("sentence_transformers") is None:
        way_out = f'pip install "sentence-transformers>=3.0", or use {key}: ngrams or model'
        return Problem(key, f"{found!r} needs sentence-transformers, which is not installed", way_out)
    return None
