"""The parts of a run taken together: what no single one of them shows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dataflex.config.arguments import COMPOSED
from dataflex.config.checks.component import NEEDS_SCORES
from dataflex.config.checks.draft import Draft, KnownPart
from dataflex.config.checks.rows import repeats
from dataflex.config.parts import BY, FILE, KEEP, OVER
from dataflex.core.errors import Problem
from dataflex.core.kinds import ORDER, SELECTOR

GIVES_SCORES = "gives_scores"
"""The constant of a selector's class that says whether the rows it chooses have scores."""


def combination_problems(draft: Draft) -> list[Problem]:
    """Returns what is wrong with the parts of a run beside each other."""
    return [
        *_selectors(draft),
        *_filters(draft),
        *(problem for known in draft.known for problem in _order(draft, known)),
    ]


def _selectors(draft: Draft) -> Iterator[Problem]:
    """Yields a problem for each selector that stands where it cannot."""
    chooser = ""
    for where, given in draft.arguments.selectors:
        if KEEP in given and chooser:
            what = f"has {KEEP}: {given[KEEP]:g}, so it is a filter, and {chooser} has chosen the rows before it"
            yield Problem(where, what, f"put it before {chooser}")
        elif KEEP not in given and chooser and f"{where}.{KEEP}" not in draft.wrong:
            what = f"chooses the rows of each stretch, and so does {chooser}: neither has {KEEP}"
            yield Problem(where, what, f"give all selectors but the last {KEEP}: SHARE, or remove one")
        elif KEEP not in given and f"{where}.{KEEP}" not in draft.wrong:
            chooser = where


def _filters(draft: Draft) -> Iterator[Problem]:
    for known in draft.known:
        if known.kind is not SELECTOR or known.part.keep is None or repeats(known) is not True:
            continue
        written = "replacement" in known.part.component.params
        what = f"{known.named} returns rows twice, and with {KEEP} it is a filter, which keeps a row once"
        way_out = "set params: {replacement: false}" if written else "use another selector, or remove keep"
        yield Problem(f"{known.where}.params.replacement" if written else known.where, what, way_out)


def _order(draft: Draft, order: KnownPart) -> Iterator[Problem]:
    if order.kind is not ORDER:
        return
    part, said = order.part, draft.arguments.order or {}
    at = {key: f"order.{key}" if key in said else order.where for key in (BY, OVER)}
    chooser = next((known for known in draft.known if known.kind is SELECTOR and known.part.keep is None), None)
    asks = any(KEEP not in given for _, given in draft.arguments.selectors)
    if part.by is None and BY in said and not order.declares(NEEDS_SCORES, True):
        yield Problem(at[BY], f"is {said[BY]}, and {order.named} looks at no scores", "remove it")
    if part.by == "selector" and not asks:
        others = "loss | length | column:NAME | file:PATH"
        way_out = f"name a selector without {KEEP}, or write by: {others}"
        if draft.arguments.train_type != COMPOSED:
            way_out = f"write by: {others}, or set train_type: {COMPOSED} and name a selector"
        yield Problem(at[BY], "is selector, and the run has no selector that chooses its rows", way_out)
    if part.by == "selector" and chooser is not None and chooser.declares(GIVES_SCORES) is False:
        way_out = "use a selector that scores rows, or write by: loss | length | column:NAME | file:PATH"
        yield Problem(at[BY], f"is selector, and {chooser.named} gives rows no scores", way_out)
    if part.by is not None and part.by.startswith(FILE) and not Path(part.by.removeprefix(FILE)).is_file():
        path = part.by.removeprefix(FILE)
        found = "is no file" if Path(path).exists() else "does not exist"
        yield Problem(at[BY], f"{path} {found}", "give a file with a score for each row")
    own = order.declares(OVER)
    if isinstance(own, str) and part.over != own:
        way_out = "remove over, or use another order"
        yield Problem(at[OVER], f"is {part.over}, and {order.named} works over the {own} alone", way_out)
    elif part.over == "run" and asks:
        what = "is run, and a selector chooses the rows of each stretch, so no rows are left for the order to choose"
        way_out = "set over: stretch, or give the selector keep"
        if own is not None:
            what, way_out = (
                f"{order.named} works over the run alone, and {what[7:]}",
                "give the selector keep, or leave it out",
            )
        yield Problem(at[OVER], what, way_out)
