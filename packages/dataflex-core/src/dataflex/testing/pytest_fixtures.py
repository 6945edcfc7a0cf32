"""Fixtures of pytest for tests of a plugin. pytest finds them by itself where dataflex-core is installed.

Nothing is imported at the start of pytest: a fixture imports what it gives when a test asks for it. A fixture of the
same name in a project's own ``conftest.py`` takes the place of one of these.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from dataflex.testing import TokenRows


@pytest.fixture
def tiny_model() -> PreTrainedModel:
    """A randomly initialised Llama of 2 layers, the same in every test; see :func:`dataflex.testing.tiny_model`."""
    from dataflex import testing

    return testing.tiny_model()


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of 512 tokens; see :func:`dataflex.testing.tiny_tokenizer`."""
    from dataflex import testing

    return testing.tiny_tokenizer()


@pytest.fixture
def rows() -> TokenRows:
    """48 rows of 8 to 24 tokens; see :class:`dataflex.testing.TokenRows`."""
    from dataflex import testing

    return testing.TokenRows(48, lengths=range(8, 25))


@pytest.fixture
def sources() -> dict[str, TokenRows]:
    """Two sources of different size, ``a`` and ``b``."""
    from dataflex import testing

    return {
        "a": testing.TokenRows(20, lengths=range(8, 25), seed=1),
        "b": testing.TokenRows(36, lengths=range(8, 25), seed=2),
    }


@pytest.fixture
def trainer_of(tmp_path: Path) -> Callable[..., Any]:
    """Returns a function that makes the trainer of a small run on the CPU.

    ``trainer_of(rows, selector=Shortest, update_step=2, update_times=2)`` takes the train dataset, or a mapping from
    sources to theirs, and the keywords of :func:`dataflex.dynamic`. ``eval_dataset``, ``model``, ``args`` (fields of
    ``TrainingArguments``) and what else the trainer takes may be given too. Each trainer has a folder of its own.
    """
    from dataflex.testing.small_trainers import small_trainer

    made: list[None] = []

    def make(train_dataset: Any, **given: Any) -> Any:
        made.append(None)
        return small_trainer(tmp_path / f"run-{len(made)}", train_dataset, **given)

    return make


@pytest.fixture(scope="session")
def two_ranks() -> Callable[..., list[Any]]:
    """:func:`dataflex.testing.two_ranks`: calls a function of a module on two ranks and returns what both return."""
    from dataflex import testing

    return testing.two_ranks
