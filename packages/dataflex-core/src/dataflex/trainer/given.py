"""What a trainer is given: its arguments by name, a run that fits it, and a collator that keeps rows apart."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from transformers.trainer_utils import RemoveColumnsCollator

from dataflex.config.arguments import DataflexArguments
from dataflex.config.checks.keys import parse_arguments
from dataflex.config.spec import RunSpec
from dataflex.core.errors import ConfigError, DataflexError, Problem, refuse
from dataflex.core.kinds import Kind
from dataflex.objective.samples import ROWS, samples_of
from dataflex.rows.row_numbers import documents as documents_of
from dataflex.rows.streams import Stream
from dataflex.rows.views import MixedSources
from dataflex.scoring.trial import trial_rows


def by_name(bases: Sequence[type], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of a constructor under the names that it has for them.

    A constructor that takes ``*args`` hands what it does not name itself to the next class.

    Args:
        bases: The classes that get them, in the order in which they are called.
        args: Positional arguments.
        kwargs: Named arguments.

    Raises:
        TypeError: There are too many, or one is given twice: as Python would say.
    """
    named, rest = dict(kwargs), list(args)
    for base in bases:
        init = vars(base).get("__init__")
        if init is None or not rest:
            continue
        parameters = list(inspect.signature(init).parameters.values())[1:]
        for name in [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD][: len(rest)]:
            if name in named:
                raise TypeError(f"{base.__name__}() got multiple values for argument '{name}'")
            named[name] = rest.pop(0)
        if not any(p.kind is p.VAR_POSITIONAL for p in parameters):
            break
    if rest:
        raise TypeError(f"{len(rest)} positional arguments more than a trainer takes: {rest!r:.200}")
    return named


def require_spec(spec: RunSpec, kind: Kind) -> None:
    """Refuses a run that was built by hand and is not what ``validate`` would let through, or is another trainer's.

    Raises:
        InvalidConfigError: Every problem, by key.
    """
    keys = spec.arguments
    _, problems = parse_arguments({f.name: getattr(keys, f.name) for f in fields(DataflexArguments)}, Path.cwd())
    if not any(problem.where == "train_type" for problem in problems) and keys.train_type != kind.train_type:
        what = f"is {keys.train_type}, but this trainer runs {kind.train_type}"
        problems.append(Problem("train_type", what, f"write train_type={kind.train_type!r}, or take the other trainer"))
    found = spec.component
    if found is None and kind.train_type != "dynamic_mix":
        problems.append(Problem("component", f"is missing; this trainer needs a {kind.name}", "give a ComponentSpec"))
    if found is not None and found.kind is not kind:
        what = f"is the {found.kind.name} '{found.name}', but this trainer needs a {kind.name}"
        problems.append(Problem("component", what, f"give a ComponentSpec of a {kind.name}"))
    if spec.epochs is not None and not spec.epochs >= 0:
        problems.append(Problem("epochs", f"found {spec.epochs!r}, allowed: a number above 0", "None for no repeats"))
    refuse(problems)


def first_rows(dataset: Any) -> list[Any]:
    """Returns the first and the last row of a train dataset; of streams, the first two."""
    if isinstance(dataset, MixedSources) and isinstance(dataset.sources[0], Stream):
        return dataset.sources[0].first(2)
    return [dataset[0], dataset[len(dataset) - 1]]


def rows_to_learn(dataset: Any) -> list[Any]:
    """Returns the first two rows of a train dataset that have labels; of streams, those of the first two that have."""
    if isinstance(dataset, MixedSources) and isinstance(dataset.sources[0], Stream):
        rows = dataset.sources[0].first(2)
        return [rows[number] for number in trial_rows(rows)]
    return [dataset[int(number)] for number in trial_rows(dataset)]


def require_rows_apart(
    collate: Callable[[list[Any]], Any], rows: Sequence[Any], who: str, documents: bool = False
) -> None:
    """Collates two rows and refuses a batch in which they cannot be told apart. Leaves torch's generator as it was.

    Args:
        collate: The collator, as training calls it.
        rows: What :func:`first_rows` returned; nothing is tried without any.
        who: The component that needs the loss of each row, in words.
        documents: Whether rows may follow each other in one, told apart by ``position_ids``.

    Raises:
        ConfigError: What the collator made of them, or raised, and the way out.
    """
    if not rows:
        return
    pair = [dict(rows[0]), dict(rows[-1])]  # a collator may take keys out of a row
    counts = [documents_of(row) for row in pair]
    try:
        with torch.random.fork_rng(devices=[]):
            batch = collate(pair)
    except DataflexError:
        raise
    except Exception as error:  # a collator may raise anything; the cause keeps its traceback
        raise ConfigError(
            f"data_collator: {_name(collate)} raised {type(error).__name__}: {error}, on two rows of the train dataset"
            " -> use a collator that takes these rows, or remove the columns that it cannot take"
        ) from error
    tokens = batch.get("input_ids") if isinstance(batch, Mapping) else None
    if isinstance(tokens, torch.Tensor) and tokens.ndim == 2:
        if len(tokens) == len(pair) or (documents and _are_documents(batch, sum(counts))):
            return
        made = f"input_ids of shape {tuple(tokens.shape)}"
    elif isinstance(batch, Mapping):
        made = f"a batch of {', '.join(map(str, batch)) or 'nothing'}, without input_ids,"
    else:
        made = f"a {type(batch).__name__}"
    raise ConfigError(
        f"data_collator: {who} looks at single rows of a batch, but {_name(collate)} made {made} of 2 rows -> use a "
        "collator that pads (TRL: padding_free=False, and packing_strategy='wrapped' or no packing), and rows of one "
        "text each, not pairs"
    )


def _are_documents(batch: Mapping[str, Any], rows: int) -> bool:
    """Returns whether the samples of a flattened batch are its rows, or the documents that they were packed of."""
    samples = samples_of(batch)
    return samples is not ROWS and len(samples.label_sums(torch.zeros(batch["position_ids"].shape))) == rows


def _name(collate: Any) -> str:
    """Returns what the user knows it by."""
    if isinstance(collate, RemoveColumnsCollator):
        return _name(collate.data_collator)
    return collate.__name__ if inspect.isfunction(collate) else type(collate).__name__
