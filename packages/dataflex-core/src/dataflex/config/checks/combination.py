"""The parts of a run taken together: what no single one of them shows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from dataflex.config.arguments import COMPOSED
from dataflex.config.axis_keys import BY, COLUMN, FILE, KEEP, OVER
from dataflex.config.checks.enough_rows import repeats
from dataflex.config.checks.parsed_config import Draft, KnownPart
from dataflex.config.mixture_sources import MixtureBy
from dataflex.core.errors import Problem, listed, nearest
from dataflex.core.kinds import ORDER, SELECTOR

GIVES_SCORES = "gives_scores"
"""The constant of a selector's class that says whether the rows it chooses have scores."""
_OTHER_SCORES = "write by: loss | length | column:NAME | file:PATH"


def combination_problems(draft: Draft) -> list[Problem]:
    """Returns what is wrong with the parts of a run beside each other."""
    problems = [*_selectors(draft), *_filters(draft)]
    for known in draft.known:
        if known.kind is ORDER:
            problems += [*_by(draft, known), *_over(draft, known)]
    return problems


def column_problems(draft: Draft, columns: Mapping[str, frozenset[str] | None]) -> list[Problem]:
    """Returns a problem for each dataset without the column that an order takes its scores from.

    Args:
        draft: The configuration.
        columns: Train dataset -> the columns of its files; None where they are not known.
    """
    problems = []
    made = (
        None
        if "mixture_by" in draft.wrong or not (draft.arguments.mixes or draft.arguments.weighs)
        else (MixtureBy.of(draft.arguments))
    )
    if made is not None and made.column is not None:
        for dataset, there in columns.items():
            if there is not None and made.column not in there:
                what = f"the dataset '{dataset}' has no column '{made.column}'; its columns: {listed(there)}"
                problems.append(Problem("mixture_by", what, nearest(made.column, there) or "add it to every row"))
    for order in (known for known in draft.known if known.kind is ORDER):
        by = order.part.by or ""
        name = by.removeprefix(COLUMN)
        for dataset, there in columns.items():
            if by.startswith(COLUMN) and there is not None and name not in there:
                what = f"the dataset '{dataset}' has no column '{name}'; its columns: {listed(there)}"
                way_out = nearest(name, there) or "name one of these, or add the column to every row"
                problems.append(Problem(_at(draft, order, BY), what, way_out))
    return problems


def _selectors(draft: Draft) -> Iterator[Problem]:
    """Yields a problem for each selector that stands where it cannot."""
    chooser = ""
    for where, given in draft.arguments.selectors:
        if f"{where}.{KEEP}" in draft.wrong:
            continue
        if KEEP in given and chooser:
            what = f"has {KEEP}: {given[KEEP]:g}, so it is a filter, and {chooser} has chosen the rows before it"
            yield Problem(where, what, f"put it before {chooser}")
        elif KEEP not in given and chooser:
            what = f"chooses the rows of each stretch, and so does {chooser}: neither has {KEEP}"
            yield Problem(where, what, f"give {chooser} {KEEP}: SHARE, which makes it a filter, or remove one")
        elif KEEP not in given:
            chooser = where


def _filters(draft: Draft) -> Iterator[Problem]:
    for known in draft.known:
        if known.kind is not SELECTOR or known.part.keep is None or repeats(known) is not True:
            continue
        written = "replacement" in known.part.component.params
        what = f"{known.named} returns rows twice, and with {KEEP} it is a filter, which keeps a row once"
        way_out = "set params: {replacement: false}" if written else f"use another selector, or remove {KEEP}"
        yield Problem(f"{known.where}.params.replacement" if written else known.where, what, way_out)


def _by(draft: Draft, order: KnownPart) -> Iterator[Problem]:
    by, where, said = order.part.by, _at(draft, order, BY), draft.arguments.order or {}
    if by is None and BY in said:
        yield Problem(where, f"is {said[BY]}, and {order.named} looks at no scores", "remove it")
    own, chooser = order.declares(BY), _chooser(draft)
    if by is not None and isinstance(own, str) and by != own:
        yield Problem(where, f"is {by}, and {order.named} takes its scores by: {own} alone", "remove it")
        return
    if by == "selector" and not _asks_for_rows(draft):
        name = f"name a selector without {KEEP}"
        way_out = name if draft.arguments.train_type == COMPOSED else f"set train_type: {COMPOSED} and {name}"
        what = "is selector, and no selector chooses the rows of the run"
        yield Problem(where, what, f"{_OTHER_SCORES}, or {way_out}")
    if by == "selector" and chooser is not None and chooser.declares(GIVES_SCORES) is False:
        what = f"is selector, and {chooser.named} gives rows no scores"
        yield Problem(where, what, f"{_OTHER_SCORES}, or use a selector that scores rows")
    if by is not None and by.startswith(FILE) and not (path := Path(by.removeprefix(FILE))).is_file():
        found = f"{path} {'is no file' if path.exists() else 'does not exist'}"
        yield Problem(where, found, "name a file with a score for each row of the train dataset")


def _over(draft: Draft, order: KnownPart) -> Iterator[Problem]:
    over, own, where = order.part.over, order.declares(OVER), _at(draft, order, OVER)
    if isinstance(own, str) and over != own:
        yield Problem(where, f"is {over}, and {order.named} works over: {own} alone", "remove it, or use another order")
    elif over == "run" and _asks_for_rows(draft):
        what = "is run, and a selector chooses the rows of each stretch before the order comes"
        way_out = "set over: stretch"
        if own is not None:
            what = f"{order.named} chooses from the rows of the run itself, and so does a selector without {KEEP}"
            way_out = "leave out the selector, or give it keep"
        yield Problem(where, what, way_out)


def _at(draft: Draft, order: KnownPart, key: str) -> str:
    """Returns the place of ``by`` or ``over``: its key where the run gives it, else the order's."""
    return f"order.{key}" if key in (draft.arguments.order or {}) else order.where


def _chooser(draft: Draft) -> KnownPart | None:
    return next((known for known in draft.known if known.kind is SELECTOR and known.part.keep is None), None)


def _asks_for_rows(draft: Draft) -> bool:
    """Whether a selector without ``keep`` is asked for, found or not."""
    return any(KEEP not in given and f"{where}.{KEEP}" not in draft.wrong for where, given in draft.arguments.selectors)
