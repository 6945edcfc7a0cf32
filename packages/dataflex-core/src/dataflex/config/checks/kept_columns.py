"""Columns of the raw data that rows are scored by: what LLaMA-Factory's keys must leave of a row for it."""

from __future__ import annotations

from collections.abc import Sequence

from dataflex.core.errors import Problem, listed

FILE = "give the scores as file:PATH, by row of the train dataset"


def column_problems(columns: Sequence[str], *, streaming: bool, packing: bool) -> list[Problem]:
    """Returns why a value of a column would not be that of a row of the train dataset, by key.

    Args:
        columns: The columns that are asked for; nothing is wrong without any.
        streaming: LLaMA-Factory's key.
        packing: Its key; without one, whether ``stage`` is ``pt``.
    """
    found = []
    who = f"rows are scored by column:{listed(columns)}"
    if columns and streaming:
        what = f"found true, but {who}, and a stream has no rows to look a value up for"
        found.append(Problem("streaming", what, f"set streaming: false, or {FILE}"))
    if columns and packing:
        what = f"found true (as stage: pt has it), but {who}, and a packed row is made of several"
        found.append(Problem("packing", what, f"set packing: false, or {FILE}"))
    return found
