"""Refusing an update that asks for more rows than can be given; the trainer adds which selector and which update."""

from __future__ import annotations

from dataflex.core.errors import ComponentError

HAVE_LABELS = "have a label to learn from"
SHOW_LABELS = "use a larger cutoff_len if it cuts the answers off"


def require_enough(wanted: int, found: int, size: int, have: str = HAVE_LABELS, way_out: str = SHOW_LABELS) -> None:
    """Refuses to go on with fewer rows than are wanted.

    Args:
        wanted: Rows that the update asks for; 1 where a row may come again and again.
        found: Rows that can be given.
        size: Rows that were looked at.
        have: What those that can be given have, as in "have a label".
        way_out: What gives more of them, besides asking for fewer at once.

    Raises:
        ComponentError: Fewer were found than are wanted.
    """
    if found < wanted:
        raise ComponentError(
            f"{wanted} rows are wanted, but only {found} of {size} {have} -> {way_out}, or a shorter stretch from this "
            "update to the next"
        )
