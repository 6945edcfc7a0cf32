"""Refuses what asks for more rows than there are; the trainer adds the selector and the update."""

from __future__ import annotations

from typing import Any

from dataflex.core.errors import ComponentError
from dataflex.rows.columns import first_labelled_rows
from dataflex.utils.logging import logger

HAVE_LABELS = "have a label to learn from"
SHOW_LABELS = "use a larger cutoff_len if it cuts the answers off"


def require_enough(wanted: int, found: int, size: int, have: str = HAVE_LABELS, way_out: str = SHOW_LABELS) -> None:
    """Refuses to go on with fewer rows than are wanted.

    Args:
        wanted: Rows that the update asks for; 1 where a row may come more than once.
        found: Rows that can be given.
        size: Rows that were looked at.
        have: What these rows have, as in "have a label".
        way_out: What the user can change to have more of them, besides asking for fewer.

    Raises:
        ComponentError: Fewer were found than are wanted.
    """
    if found < wanted:
        raise ComponentError(
            f"{wanted} rows are wanted, but only {found} of {size} {have} -> {way_out}, or a shorter stretch from this "
            "update to the next"
        )


def require_labelled(dataset: Any, wanted: int, way_out: str = SHOW_LABELS) -> None:
    """Refuses a run whose updates would ask for more rows than have a label. Called before the first step.

    Args:
        dataset: The train dataset; of a large one, hardly more rows are read than are wanted.
        wanted: The most rows that an update asks for; 1 where a row may come more than once, 0 for none.
        way_out: What the user can change to have more of them, besides fewer rows per update.

    Raises:
        ComponentError: Fewer have one.
    """
    if wanted:
        require_enough(wanted, len(first_labelled_rows(dataset, wanted)), len(dataset), way_out=way_out)


def require_candidates(candidates: int | None, wanted: int) -> None:
    """Refuses a run whose updates would choose more rows than they look at. Called before the first step.

    Args:
        candidates: Rows drawn at each update to choose from; None for all.
        wanted: The most rows that an update asks for.

    Raises:
        ComponentError: There are fewer candidates.
    """
    if candidates is not None and candidates < wanted:
        raise ComponentError(
            f"{wanted} rows are wanted at an update, and candidates: {candidates} are looked at -> more candidates, or "
            "fewer rows per update (update_step)"
        )


def tell_of_clusters(who: str, key: str, clusters: int | None, rows: int, so: str) -> None:
    """Warns of as many clusters as rows, of which each is then one by itself. Called before the first step.

    Args:
        who: The selector.
        key: The parameter.
        clusters: How many are asked for; None where the selector decides.
        rows: Rows that are clustered.
        so: What comes of it.
    """
    if clusters is not None and 1 < rows <= clusters:
        logger.warning(
            "%s: %s: %d for %d rows, so each is a cluster by itself and %s -> set %s to fewer, or to null",
            who, key, clusters, rows, so, key,
        )  # fmt: skip
