"""The keys that the installed LLaMA-Factory accepts, read from its source text in a few hundredths of a second.

Importing its dataclasses would load torch and transformers and take many seconds. The price of not importing: what a
class computes at run time is not seen; :func:`llamafactory_keys` returns None wherever that could give a false alarm.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from functools import cache

from dataflex.core.source import Module, SourceNotFoundError, assigned, module

SOURCES = (
    "llamafactory.hparams.model_args",
    "llamafactory.hparams.data_args",
    "llamafactory.hparams.training_args",
    "llamafactory.hparams.finetuning_args",
    "llamafactory.hparams.generating_args",
    "transformers.training_args",
    "transformers.training_args_seq2seq",
)


def enabled(variable: str) -> bool:
    """Returns whether an environment variable is switched on, as LLaMA-Factory understands it."""
    return os.environ.get(variable, "0").lower() in {"true", "y", "1"}


@cache
def llamafactory_keys() -> frozenset[str] | None:
    """Returns the fields of the argument dataclasses, or None where they cannot be told from the installed sources."""
    if enabled("USE_MCA"):  # the training arguments then come from a package that need not be there
        return None
    try:
        return frozenset(key for name in SOURCES for key in _fields(module(name)))
    except SourceNotFoundError:
        return None


@cache
def training_keys() -> frozenset[str]:
    """Returns the fields of the installed ``TrainingArguments``; none where its source cannot be read."""
    try:
        return frozenset(_fields(module("transformers.training_args")))
    except SourceNotFoundError:
        return frozenset()


def _fields(home: Module) -> set[str]:
    return {_name(statement) for statement in declarations(home)}


def declarations(home: Module) -> Iterator[ast.AnnAssign]:
    """Yields the fields of the dataclasses of a module that are arguments."""
    for cls in home.tree.body:
        if isinstance(cls, ast.ClassDef) and any("dataclass" in ast.unparse(d) for d in cls.decorator_list):
            for statement in cls.body:
                if isinstance(statement, ast.AnnAssign) and _name(statement) and not _internal(statement):
                    yield statement


def _name(statement: ast.AnnAssign) -> str:
    return statement.target.id if isinstance(statement.target, ast.Name) else ""


def _internal(statement: ast.AnnAssign) -> bool:
    """Whether the field is no argument: private, a class variable, or ``field(init=False)``."""
    if "ClassVar" in ast.unparse(statement.annotation):
        return True
    pair = assigned(statement)
    if pair is None:
        return False
    name, value = pair
    keywords = value.keywords if isinstance(value, ast.Call) else []
    return name.startswith("_") or any(k.arg == "init" and ast.unparse(k.value) == "False" for k in keywords)
