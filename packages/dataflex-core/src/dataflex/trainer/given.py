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
from dataflex.config.checks.source_keys import prompt_problems
from dataflex.config.mixture_sources import MixtureBy
from dataflex.config.spec import RunSpec
from dataflex.core.errors import ConfigError, DataflexError, Problem, refuse
from dataflex.core.kinds import BY_TRAIN_TYPE, MIXER, Kind
from dataflex.objective.samples import ROWS, samples_of
from dataflex.planning.run_schedule import require_map_style, require_observable
from dataflex.planning.sources import (
    are_streams,
    mixed_sources,
    require_mixture,
    require_objective,
    require_streamable,
    split_by_labels,
)
from dataflex.rows.row_numbers import documents as documents_of
from dataflex.rows.split_sources import SplitSources
from dataflex.rows.streams import Stream
from dataflex.rows.views import MixedSources
from dataflex.scoring.trial import trial_rows
from dataflex.upstream.online_trainers import online_stage


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


def require_spec(spec: RunSpec, kind: Kind | None, trainer: type) -> None:
    """Refuses a run that was built by hand and is not what ``validate`` would let through, or is another trainer's.

    Args:
        spec: The run.
        kind: What its one component must be; None for any run.
        trainer: The class that trains.

    Raises:
        InvalidConfigError: Every problem, by key.
    """
    keys = spec.arguments
    _, problems = parse_arguments({f.name: getattr(keys, f.name) for f in fields(DataflexArguments)}, Path.cwd())
    wrong_type = any(problem.where == "train_type" for problem in problems)
    if kind is None:
        if not wrong_type and not keys.dynamic:
            problems.append(Problem("train_type", f"is {keys.train_type}, which nothing is to be done for", "leave it"))
    elif not wrong_type and keys.train_type != kind.train_type:
        what = f"is {keys.train_type}, but this trainer runs {kind.train_type}"
        problems.append(Problem("train_type", what, f"write train_type={kind.train_type!r}, or take the other trainer"))
    wanted = kind or BY_TRAIN_TYPE.get(keys.train_type)
    problems += _unfit(spec, wanted) if wanted is not None else _unlike(spec)
    problems += prompt_problems(keys, online_stage(trainer) or "")
    if spec.epochs is not None and not spec.epochs >= 0:
        problems.append(Problem("epochs", f"found {spec.epochs!r}, allowed: a number above 0", "None for no repeats"))
    refuse(problems)


def _unfit(spec: RunSpec, kind: Kind) -> list[Problem]:
    """Returns what is wrong with the one component of a run."""
    found = spec.component
    if found is None and kind is not MIXER:
        return [Problem("component", f"is missing; this trainer needs a {kind.name}", "give a ComponentSpec")]
    if found is not None and found.kind is not kind:
        what = f"is the {found.kind.name} '{found.name}', but this trainer needs a {kind.name}"
        return [Problem("component", what, f"give a ComponentSpec of a {kind.name}")]
    return []


def _unlike(spec: RunSpec) -> list[Problem]:
    """Returns the axes that are in the keys of a run and not among its parts, or the other way round."""
    there = {part.component.kind for part in spec.parts}
    return [
        Problem(kind.name, "is named in only one of arguments and parts of the RunSpec", "name it in both")
        for kind in there ^ set(spec.arguments.kinds)
    ]


def given_rows(spec: RunSpec, dataset: Any, args: Any) -> Any:
    """Returns the train dataset as the run takes it: several sources as one, a single dataset as it is.

    Args:
        spec: The run.
        dataset: What the trainer is given.
        args: TrainingArguments, or None.

    Raises:
        ConfigError: It cannot be planned by row number, mixed, or observed.
    """
    keys = spec.arguments
    require_objective(spec)
    if spec.mixes or spec.weighs:
        dataset = split_by_labels(dataset, keys)
    if clustered(keys) and not isinstance(dataset, SplitSources):  # once the rows are tokenised
        require_map_style(dataset, keys.train_type, keys)
        return dataset
    if not spec.mixes:
        if isinstance(dataset, Mapping) and spec.weighs:
            dataset = MixedSources(dataset)
        require_map_style(dataset, keys.train_type, keys)
        return dataset
    require_observable(spec)
    mixed = mixed_sources(dataset)
    require_mixture(mixed, keys)
    if are_streams(mixed):
        require_streamable(spec, 0 if args is None else args.dataloader_num_workers)
        if args is not None and args.max_steps <= 0:  # TRL's trainer is shown a stream, and must be told
            args.max_steps = spec.steps().total or args.max_steps
    require_map_style(mixed, keys.train_type, keys)
    return mixed


def clustered(keys: DataflexArguments) -> bool:
    """Returns whether the sources of a run are groups of rows that are alike."""
    by = MixtureBy.of(keys)
    return by is not None and by.clusters is not None and (keys.mixes or keys.weighs)


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
    collate: Callable[[list[Any]], Any],
    rows: Sequence[Any],
    who: str,
    documents: bool = False,
    rows_in: Callable[[Mapping[str, Any]], int] | None = None,
) -> None:
    """Collates two rows and refuses a batch in which they cannot be told apart. Leaves torch's generator as it was.

    Args:
        collate: The collator, as training calls it.
        rows: What :func:`first_rows` returned; nothing is tried without any.
        who: The component that needs the loss of each row, in words.
        documents: Whether rows may follow each other in one, told apart by ``position_ids``.
        rows_in: Returns the rows of a batch, where a row is no text; None: a sequence is a row.

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
    if rows_in is not None and isinstance(batch, Mapping) and rows_in(batch) == len(pair):
        return
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
