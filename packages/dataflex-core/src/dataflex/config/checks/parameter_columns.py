"""Columns of the raw data that components name among their parameters, looked for in the files of the run.

A class says in a constant which of its parameters names them, as it is not imported here. Only what training would
refuse is refused: of scores, a column that no dataset has; of weights of messages, one that some dataset lacks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dataflex.config.checks.parsed_config import Draft, KnownPart
from dataflex.core.errors import Problem, listed, nearest
from dataflex.core.score_names import COLUMN, ScoreName

SCORES, TOKENS = "scores_named_in", "token_column_in"
"""The constants of a class that hold the name of a parameter."""

Columns = Mapping[str, frozenset[str] | None]


def parameter_problems(draft: Draft, columns: Columns) -> list[Problem]:
    """Returns a problem for each column that a component names and the rows will not have.

    Args:
        draft: The configuration.
        columns: Train dataset -> the columns of its files; None where they are not known.
    """
    found = []
    for known in draft.known:
        found += [*_scores(known, columns), *(_tokens(known, columns) if _makes_messages(draft) else ())]
    return found


def _scores(known: KnownPart, columns: Columns) -> Iterator[Problem]:
    """Yields a problem for each column of scores that none of the datasets has."""
    parameter, given = _parameter(known, SCORES)
    there = [names for names in columns.values() if names is not None]
    if not there or len(there) < len(columns):
        return
    for score in [given] if isinstance(given, str) else given if isinstance(given, list | tuple) else ():
        name = ScoreName.of(str(score))
        if name.kind != COLUMN or any(name.argument in names for names in there):
            continue
        every = frozenset().union(*there)
        what = f"{known.named} has {parameter}: {score}, and no dataset of the run has a column '{name.argument}'"
        way_out = nearest(name.argument, every) or "name one of these, or give the scores as file:PATH"
        yield Problem(known.where, f"{what}; their columns: {listed(every)}", way_out)


def _tokens(known: KnownPart, columns: Columns) -> Iterator[Problem]:
    """Yields a problem for each dataset without the column of weights; ``messages.weight`` is in ``messages``."""
    parameter, given = _parameter(known, TOKENS)
    if not isinstance(given, str):
        return
    outer = given.partition(".")[0]
    for dataset, there in columns.items():
        if there is None or given in there or outer in there:
            continue
        what = f"{known.named} has {parameter}: {given}, and the dataset '{dataset}' has no column '{outer}'"
        way_out = nearest(outer, there) or "name a column of lists, or one of messages as messages.weight"
        yield Problem(known.where, f"{what}; its columns: {listed(there)}", way_out)


def _parameter(known: KnownPart, constant: str) -> tuple[str, Any]:
    """Returns the parameter that a constant names, and its value; None where the class names none."""
    name = known.declares(constant, "")
    if known.info is None or not name:
        return "", None
    return name, known.params.get(name)


def _makes_messages(draft: Draft) -> bool:
    """Whether rows are made of messages, whose weights are kept; else training refuses the run for another reason."""
    return draft.stage == "sft" and not draft.theirs.get("tokenized_path")
