"""The keys that the installed LLaMA-Factory accepts, read from its source text in a few hundredths of a second.

Importing its dataclasses would load torch and transformers and take many seconds. The price of not importing: what a
class computes at run time is not seen; :func:`llamafactory_keys` returns None wherever that could give a false alarm.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Iterable, Iterator
from functools import cache

from dataflex.discovery.installed import has_package
from dataflex.discovery.source_files import Module, SourceNotFoundError, assigned, module

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
    return readable_keys() if len(argument_sources()) == len(SOURCES) else None


@cache
def readable_keys() -> frozenset[str]:
    """Returns the fields of those argument dataclasses that can be read: transformers' alone without LLaMA-Factory."""
    return frozenset(key for home in argument_sources() for key in _fields(home))


@cache
def argument_sources() -> tuple[Module, ...]:
    """Returns the modules of :data:`SOURCES` that can be read; none where others hold the arguments of a run."""
    if enabled("USE_MCA"):  # the training arguments then come from a package that need not be there
        return ()
    found = []
    for name in SOURCES:
        try:
            found.append(module(name))
        except SourceNotFoundError:
            continue
    return tuple(found)


def handed_on(train_type: str) -> bool:
    """Returns whether a run is left to LLaMA-Factory's next trainer (``USE_V1=1``), whose keys are others."""
    return train_type == "static" and enabled("USE_V1")


def next_trainer_trains() -> bool:
    """Returns whether the next trainer that is installed knows the command ``train``.

    That of 0.9.4 does not: it prints its usage and exits with 0, as if it had trained.
    """
    try:
        tree = module("llamafactory.v1.launcher").tree
    except SourceNotFoundError:
        return False
    return any(isinstance(node, ast.Constant) and node.value == "train" for node in ast.walk(tree))


def unchecked_keys(theirs: Iterable[str], train_type: str) -> tuple[str, ...]:
    """Returns the keys of LLaMA-Factory's part of a run that nobody here can tell right from wrong, in their order."""
    if handed_on(train_type):
        return tuple(theirs)
    if llamafactory_keys() is not None:
        return ()
    known = readable_keys()
    return tuple(key for key in theirs if key not in known)


def why_unchecked(train_type: str) -> str:
    """Returns why keys of LLaMA-Factory are not checked, as a part of a sentence."""
    if not has_package("llamafactory"):
        return "LLaMA-Factory is not installed"
    if handed_on(train_type):
        return "with USE_V1=1 LLaMA-Factory's next trainer reads them"
    if enabled("USE_MCA"):
        return "with USE_MCA=1 another package reads them"
    return "the source text of the installed LLaMA-Factory cannot be read"


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
